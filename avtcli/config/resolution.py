"""Resolve settings from recipe and command line: plain tables are merged, then checked once; None means not given."""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from avtcli import recipes, registry
from avtcli.config.components import Augment, Plugin, flags_of, plugin_fields
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.probe_config import ProbeConfig
from avtcli.errors import AvtError, nearest, shown
from avtcli.input_files import DEPTH, LONGEST, check_values
from avtcli.plugin_options import absolute_path, parse_value

T = TypeVar("T", bound=BaseModel)
_OPTION = "KIND.KEY=VALUE, as in `-o backbone.width=0.25`"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Overlay settings; None means not given. A plugin of another name drops the options of the one it replaces."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping):
            found = out.get(key)
            below = {"name": found} if isinstance(found, str) else {} if found is None else found
            if not isinstance(below, Mapping):
                raise AvtError(f"{key} needs a table of settings, found {shown(found)}.")
            replaced = "name" in value and value["name"] != below.get("name")
            out[key] = merge({} if replaced else below, value)
        elif value is not None:
            out[key] = value
    return out


def resolve(over: Mapping[str, Any], *, recipe: str | None) -> PretrainConfig:
    """Overlay a recipe with the command line; plugins have their full names and every option, see `resolve_plugin`.

    Args:
        over: settings by section, None where not given; `lr` is the backbone's peak rate.
        recipe: a recipe's name or a TOML file; left out, the published one of data set and backbone, else the default.
    """
    peak, over = over.get("lr"), {**over, "lr": None}
    name = recipe or recipes.choose(over)
    kinds = plugin_fields(PretrainConfig)
    named = {kind: {"name": PretrainConfig.model_fields[kind].default.name} for kind in kinds}
    settings = merge(merge({"recipe": name, **named}, recipes.load(name, kind="pretrain")), over)
    config = validate(PretrainConfig, settings, where=f"recipe {name}")
    update: dict[str, Any] = {kind: resolve_plugin(kind, getattr(config, kind)) for kind in kinds}
    dataset = update["dataset"].name
    if registry.takes("dataset", dataset, "data_dir") and registry.split_name(dataset)[1] is None:
        update["data_dir"] = str(data_folder(config.data_dir))
    if peak is not None:
        update["schedule"] = config.schedule.with_peak(peak)
    return config.model_copy(update=update)


def resolve_plugin(kind: str, plugin: Plugin) -> Plugin:
    """Return a plugin with its full name and all its options, defaults included and typed: two spellings become equal."""
    name, options = registry.resolve(kind, plugin.name, plugin.options)
    return Plugin.model_validate({"name": name, **options})


def data_folder(data_dir: str | None) -> Path:
    """Return --data-dir, else $AVT_DATA, else ./data, absolute."""
    return absolute_path(data_dir or os.environ.get("AVT_DATA") or "data")


def moved_data(stored: Plugin, given: Plugin) -> Plugin:
    """Return the data set of a resumed run with the place that was given, as in `folder:DIR`, and the run's options.

    Raises:
        AvtError: if options or another data set were given.
    """
    (own, _), (name, _) = registry.split_name(stored.name), registry.split_name(given.name)
    if name != own or given.options:
        found = f"'{given.name}'" + (f" with {', '.join(given.options)}" if given.options else "")
        raise AvtError(f"--resume takes --dataset for the same images in another place, as `{own}:DIR`; found {found}.")
    return resolve_plugin("dataset", Plugin(name=given.name, **stored.options))


def resolve_probe(over: Mapping[str, Any], *, recipe: str | None) -> ProbeConfig:
    """Overlay an evaluation recipe, or the default protocol, with the command line; `lr` is the heads' peak rate."""
    peak, over = over.get("lr"), {**over, "lr": None}
    content = recipes.load(recipe, kind="probe") if recipe is not None else {}
    ours = {"recipe": recipe, **{key: ProbeConfig.model_fields[key].default.model_dump() for key in ("head", "optimizer")}}
    settings = merge(merge(merge(ours, content), over), {"rates": None if peak is None else (peak,)})
    config = validate(ProbeConfig, settings, where="the command line" if recipe is None else f"recipe {recipe}")
    if peak is None or config.schedule is None:
        return config
    return config.model_copy(update={"schedule": config.schedule.with_peak(peak)})


def validate(model: type[T], settings: Mapping[str, Any], *, where: str) -> T:
    """Check settings; an `AvtError` names every bad one at once, what was found and what was expected."""
    check_values(settings, where, longest=LONGEST)
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        problems = "".join(f"\n  {_problem(model, detail)}" for detail in error.errors())
        raise AvtError(f"These settings ({where}) are not right:{problems}") from None


def _problem(model: type[BaseModel], detail: Any) -> str:
    path = [str(part) for part in detail["loc"]]
    where = ".".join(path)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        return f"{where}: there is no such setting. {nearest(path[-1], known)}Known here: {', '.join(known)}."
    if detail["type"] == "value_error":  # raised by the models, with what was found
        return f"{where}: {detail['ctx']['error']}" if where else str(detail["ctx"]["error"])
    if detail["type"] == "missing" and path[1:] == ["name"]:
        return f"{path[0]}: found options ({', '.join(detail['input'])}) and no name: give --{path[0]} too"
    if detail["type"] == "model_type":
        return f'{where}: found {shown(detail["input"])}, expected a table, as in [{where}] with name = "NAME" below it'
    return f"{where}: {detail['msg']}, found {shown(detail['input'])}{_option(model, path)}"


def _option(model: type[BaseModel], path: list[str]) -> str:
    """Name the option of a setting that the command line takes by another name."""
    flag = flags_of(model).get(path[0])
    return f" (option {flag.option(path[0])})" if flag is not None and not path[1:2] == ["name"] else ""


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return list(model.model_fields)


def options_from_texts(texts: Iterable[str], *, kinds: Collection[str]) -> dict[str, dict[str, Any]]:
    """Read `KIND.KEY=VALUE` into settings by section; a dotted key, `transform.projective.shift=0.1`, goes a level deeper."""
    pairs = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise AvtError(f"-o takes {_OPTION}, found {shown(text)}.")
        pairs.append((key.strip(), parse_value(value.strip())))
    return options_by_kind(pairs, kinds=kinds)


def options_by_kind(pairs: Iterable[tuple[str, Any]], *, kinds: Collection[str]) -> dict[str, dict[str, Any]]:
    """Sort `KIND.KEY` and values into settings by section; see `options_from_texts`."""
    out: dict[str, Any] = {}
    for text, value in pairs:
        kind, *path = text.split(".")
        if not path or not all(path):
            raise AvtError(f"-o takes {_OPTION}, found {shown(text)}.")
        if len(path) > DEPTH:
            raise AvtError(f"-o takes at most {DEPTH} tables in each other, found {shown(text)}.")
        if kind not in kinds:
            raise AvtError(f"-o takes no kind '{kind}' here. {nearest(kind, kinds)}Kinds: {', '.join(kinds)}.")
        place = out
        for part in (kind, *path[:-1]):
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise AvtError(f"-o gives '{part}' both a value and options, as in {shown(text)}. Leave one of them out.")
        if isinstance(place.get(path[-1]), dict):
            raise AvtError(f"-o gives '{path[-1]}' both options and a value, as in {shown(text)}. Leave one of them out.")
        place[path[-1]] = value
    return out


def read_components(
    given: Mapping[str, dict[str, Any]], *, tables: Collection[str] = (), **named: str | None
) -> dict[str, Any]:
    """Complete options by kind with the names of the components: a plugin or None for each, and `augment`.

    The kinds in `tables` are returned as tables; their options may be given without a name.
    """
    augment = given.get("augment")
    for kind, name in named.items():
        if kind in given and name is None and kind not in tables:
            raise AvtError(f"`-o {kind}.{next(iter(given[kind]))}` needs the name of the {kind}: give --{kind} too.")
    for key in {"padding", "flip"} & set(augment or {}):
        raise AvtError(f"`-o augment.{key}` has no effect here: images are not padded or flipped. Use resize and crop only.")
    parts = {kind: {**({"name": name} if name else {}), **given.get(kind, {})} for kind, name in named.items()}
    plugins = {
        k: part if k in tables else validate(Plugin, part, where=f"--{k}") if part else None for k, part in parts.items()
    }
    return {**plugins, "augment": None if augment is None else validate(Augment, augment, where="-o augment.KEY")}
