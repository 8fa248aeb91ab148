"""Shell completion: names of plugins, recipes, runs, layers and options, without importing a plugin where possible."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from avtcli import recipes, registry
from avtcli.inspection.plugin_source import PluginSource, option_text, read_function, read_plugin
from avtcli.plugin_options import SUMMED, sum_parts

Completion = Callable[..., list[str]]


@contextlib.contextmanager
def quiet_completion() -> Iterator[None]:
    """Register our completion of bash; print nothing on stderr, and end without a traceback, whatever goes wrong."""
    with contextlib.suppress(ImportError):  # typer's own module may change its names: then its completion stays
        from avtcli.cli.bash_completion import register

        register()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            yield
        except Exception:  # a plugin's code, or a damaged run
            sys.exit(1)


def complete_plugin(kind: str) -> Completion:
    """Return a completion of plugins by name, and of what follows a name's colon where the plugin lists it cheaply."""

    def complete(incomplete: str) -> list[str]:
        head, plus, spec = incomplete.rpartition("+") if kind in SUMMED else ("", "", incomplete)
        name, colon, _ = spec.partition(":")
        if colon:
            found = [f"{name}:{variant}" for variant in registry.completions(kind, name)]
        else:
            installed = {info.name: read_function(kind, info.value) for info in registry.listing(kind)}
            found = [text for n, read in installed.items() for text in (n, f"{n}:")[: 1 + read.takes_variant]]
        return [f"{head}{plus}{text}" for text in found]

    return complete


def complete_any_plugin(incomplete: str) -> list[str]:
    """Complete the name of a plugin of any kind."""
    return sorted({name for kind in registry.KINDS for name in complete_plugin(kind)(incomplete)})


def complete_head(incomplete: str) -> list[str]:
    """Complete the name of a probe's head."""
    from avtcli.probing.heads import HEADS

    return list(HEADS)


def complete_setting(field: str, *, plugin: bool) -> Completion | None:
    """Return the completion of a setting of a command by its field's name, if it has one."""
    own = {"head": complete_head, "trackers": complete_plugin("tracker"), "init_from": complete_run}
    own["layers"] = complete_layers(all_of_them=True)
    return own.get(field) or (complete_plugin(field) if plugin else None)


def complete_recipe(kind: str | None = None) -> Completion:
    """Return a completion of recipes, those for the command `kind` if it is given."""

    def complete(incomplete: str) -> list[str]:
        kinds = {name: recipes.parse(name, recipes.text(name)).get("about", {}).get("kind") for name in recipes.names()}
        return [name for name, own in kinds.items() if kind in (None, own)]

    return complete


def complete_run(incomplete: str) -> list[str]:
    """Complete a run under ./runs, the newest first, or `last`."""
    from avtcli.storage.run_folders import LAST, runs_with_checkpoints

    runs = [str(path) for path in runs_with_checkpoints()]
    return [*runs, LAST] if runs else []


def complete_layers(*, several: bool = True, all_of_them: bool = False) -> Completion:
    """Return a completion of the layers of the run or backbone on the command line, or of the newest run."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        backbone = ctx.params.get("backbone")
        layers = _layers_of_backbone(backbone, ctx.params.get("overrides")) if backbone else _layers_of_run(_run(ctx))
        head, comma, _ = incomplete.rpartition(",") if several else ("", "", "")
        return [f"{head}{comma}{layer}" for layer in (*layers, *(["all"] if all_of_them and not comma else []))]

    return complete


def _run(ctx: typer.Context) -> Path:
    from avtcli.storage.run_folders import find_run

    run = ctx.params.get("run") or next(iter(ctx.args), None)  # an option without its value leaves the arguments unread
    return find_run(run)


def _layers_of_run(run: Path) -> list[str]:
    """The layers that a checkpoint states, else those of its network, which has to be built."""
    from avtcli.input_files import parse_json_object, read_bytes

    states = sorted([*run.glob("checkpoints/step-*/state.json"), *run.glob("state.json")])
    layers = parse_json_object(read_bytes(states[-1]), states[-1]).get("layers") if states else None
    if isinstance(layers, list):
        return [str(layer) for layer in layers]
    from avtcli import load_encoder

    return list(load_encoder(run).layers)


def _layers_of_backbone(spec: str, overrides: list[str] | None) -> list[str]:
    from avtcli.config.resolution import options_from_texts
    from avtcli.inspection.plugin_facts import backbone_facts

    kinds = {text.partition(".")[0] for text in overrides or []}
    options = options_from_texts(overrides or [], kinds=kinds).get("backbone", {})
    return list(backbone_facts(spec, options).layers)


def complete_component_options(*kinds: str) -> Completion:
    """Return a completion of `KIND.KEY=VALUE`: the options of the chosen plugins and of the settings' own tables."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        named = _chosen(ctx)
        own = {kind: _options(kind, named) for kind in kinds}
        keys = {f"{kind}.{key}=": default for kind, options in own.items() for key, default in options.items()}
        found = [key for key in keys if key.startswith(incomplete) or incomplete.startswith(key)]
        if len(found) > 1:
            return found
        return [text for key in found for text in (key, *(f"{key}{value}" for value in _values(keys[key])))]

    return complete


def _values(default: str) -> list[str]:
    """Values to offer: the default, or both truth values."""
    return ["true", "false"] if default in ("true", "false") else [default] if default else []


def _options(kind: str, named: Mapping[str, str]) -> dict[str, str]:
    """The options of the chosen component of a kind, with their defaults as text."""
    from avtcli.config import components

    if kind in components.TABLES:
        return {key: option_text(field.default) for key, field in components.TABLES[kind].model_fields.items()}
    if kind not in named:
        return {}
    parts = [part.partition(":")[0] for part in sum_parts(kind, named[kind])]
    found = {part: dict(_read(kind, part).options) for part in parts}
    if len(parts) == 1:
        return found[parts[0]]
    weight = {"weight": "1.0"} if SUMMED[kind] else {}
    return {f"{part}.{key}": value for part in parts for key, value in {**found[part], **weight}.items()}


def _read(kind: str, name: str) -> PluginSource:
    if kind == "head":
        return read_function(kind, f"avtcli.probing.heads.{name}:{name}")
    installed = registry.names(kind)
    if name not in installed:  # a bare variant, which `registry.full_name` would import its plugin for
        name = next((plugin for plugin in installed if name in registry.completions(kind, plugin)), name)
    return read_plugin(kind, name)


def _chosen(ctx: typer.Context) -> dict[str, str]:
    """The names of the components that the command line, its recipe, the run or the defaults choose, by kind."""
    params, tables, defaults = ctx.params, dict[str, Any](), dict[str, str]()
    given = {kind: params[kind] for kind in (*registry.KINDS, "head") if isinstance(params.get(kind), str)}
    recipe = params.get("recipe")
    if ctx.info_name == "pretrain":
        from avtcli.config.components import plugin_fields
        from avtcli.config.pretrain_config import PretrainConfig

        defaults = {kind: PretrainConfig.model_fields[kind].default.name for kind in plugin_fields(PretrainConfig)}
        tables = recipes.load(recipe or recipes.choose({k: {"name": name} for k, name in given.items()}), kind="pretrain")
    elif ctx.info_name == "probe":
        defaults, tables = {"head": "linear"}, recipes.load(recipe, kind="probe") if recipe else {}
    elif ctx.info_name == "evaluate" and "backbone" not in given:
        with contextlib.suppress(Exception):  # no run, or a damaged one
            config = _run(ctx) / "config.toml"
            tables = {"transform": recipes.parse(str(config), recipes.text(str(config)))["transform"]}
    elif ctx.info_name == "bench":
        defaults = {"backbone": "nin"}
    stated = {kind: table["name"] for kind, table in tables.items() if isinstance(table, dict) and "name" in table}
    return {**defaults, **stated, **given}
