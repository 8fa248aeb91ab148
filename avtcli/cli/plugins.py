"""`avt plugins`: list, show, check and write plugins."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from avtcli import registry
from avtcli.cli.completion import complete_any_plugin
from avtcli.cli.console import reporting, say, say_facts, say_json, say_next, say_table
from avtcli.cli.options import Json

if TYPE_CHECKING:
    from avtcli.inspection.plugin_facts import BackboneFacts, PluginFacts

app = typer.Typer(help="List, show, check and write plugins.", no_args_is_help=True, rich_markup_mode="markdown")

KindName = Literal["backbone", "transform", "dataset", "objective", "exporter", "tracker"]
_NAME = "A plugin; with :VARIANT or :PATH where it takes one."
_SIZE = "Side of the images for which a backbone is built. Default: the backbone's own."
_KINDS = f"The plugin's kind: {', '.join(get_args(KindName))}."

Name = Annotated[str, typer.Argument(metavar="NAME", help=_NAME, autocompletion=complete_any_plugin)]
OneKind = Annotated[
    KindName | None, typer.Option("--kind", metavar="KIND", help=f"{_KINDS} Default: the only one of the name.")
]


@app.callback()
def _plugins() -> None:
    """Manage backbones, transformations, data sets, objectives, exporters and trackers, built in or installed."""


@app.command("list")
def list_plugins(as_json: Json = False) -> None:
    """List every installed plugin by kind, with a sentence each, without importing it.

    Example: `avt plugins list`
    """
    from avtcli.inspection.plugin_source import read_function

    rows = [(info, read_function(info.kind, info.value).summary) for info in registry.listing()]
    if as_json:
        fields = ("kind", "name", "value", "distribution", "version")
        say_json([{**{field: getattr(info, field) for field in fields}, "summary": summary} for info, summary in rows])
        return
    width = max(len(info.name) for info, _ in rows)
    for kind in registry.KINDS:
        say(f"{kind}s")
        own = {f" {info.name:<{width}}": (info, summary) for info, summary in rows if info.kind == kind}
        say_facts({label: f"{summary}{_foreign(info)}" for label, (info, summary) in own.items()})
        say("")
    say("`avt plugins show NAME` has the options of each.")


@app.command("show")
def show(
    name: Name,
    kind: OneKind = None,
    size: Annotated[int | None, typer.Option(metavar="PX", min=8, help=_SIZE)] = None,
    as_json: Json = False,
) -> None:
    """Show a plugin: its options with types, bounds and defaults, a backbone's layers, a family's parameters.

    Example: `avt plugins show timm:resnet18`
    """
    from avtcli.inspection.plugin_facts import describe_plugin
    from avtcli.plugin_kit.plugin_checks import find_plugin

    info, name = find_plugin(name, kind)
    with reporting():
        facts = describe_plugin(info, name, side=size)
    if as_json:
        say_json(facts)
        return
    say(f"{facts.kind} {facts.name}, of {facts.distribution} {facts.version}")
    for paragraph in facts.help.split("\n\n"):
        say("", " ".join(paragraph.split()))
    if facts.variant is not None:
        say("")
        say_facts({f"after `{info.name}:`": facts.variant})
    _say_options(facts)
    if facts.backbone is not None:
        _say_layers(facts.backbone)
    if facts.parameters is not None:
        say("", "parameters that are predicted")
        say_table(("  parameter", "unit"), [(f"  {own}", unit or "-") for own, unit in facts.parameters.items()])
    if facts.problem is not None:
        say("")
        say_facts({"not shown: layers" if info.kind == "backbone" else "not shown: parameters": facts.problem})


@app.command("check")
def check(
    name: Name,
    kind: OneKind = None,
    as_json: Json = False,
) -> None:
    """Run the conformance checks: seed, shapes, gradients, statistics, inverse, documentation, import.

    Example: `avt plugins check nin`
    """
    from avtcli.errors import RunFailedError
    from avtcli.plugin_kit import check_plugin
    from avtcli.plugin_kit.plugin_checks import find_plugin

    info, name = find_plugin(name, kind)
    with reporting():
        checks = check_plugin(name, kind=info.kind)
    failed = [check for check in checks if not check.ok]
    if as_json:
        rows = [{"check": c.name, "ok": c.ok, "problem": c.problem, "figures": c.figures} for c in checks]
        about = {"kind": info.kind, "name": info.name, "distribution": info.distribution, "version": info.version}
        say_json({**about, "ok": not failed, "checks": rows})
    else:
        width = max(len(check.name) for check in checks)
        for c in checks:
            say(f"{'ok' if c.ok else 'FAILED':<6}  {c.name:<{width}}  {c.problem or c.figures}".rstrip())
    if failed:
        raise RunFailedError(
            f"{info} fails {len(failed)} of {len(checks)} conformance checks, the first: {failed[0].name}: {failed[0].problem}."
        )


@app.command("new")
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make; its name becomes the plugin's.")],
    kind: Annotated[KindName, typer.Option(metavar="KIND", help=_KINDS)] = "backbone",
) -> None:
    """Write a working plugin package with its test, to be changed into your own.

    Example: `avt plugins new my-backbone`
    """
    from avtcli.plugin_kit.scaffold import new_plugin

    name, files = folder.absolute().name, new_plugin(folder, kind=kind)
    say(f"wrote the {kind} '{name}' in {folder}: {', '.join(files)}")
    say_next(("pip", "install", "-e", folder), ("avt", "plugins", "check", name), ("pytest", folder))


def _foreign(info: registry.PluginInfo) -> str:
    return "" if info.distribution == "avtcli" else f" ({info.origin})"


def _say_options(facts: "PluginFacts") -> None:
    say("", f"options, as `-o {facts.kind}.KEY=VALUE`" if facts.options else "no options")
    rows = {}
    for option in facts.options:
        stated = f"{option.type}, {'needed' if option.required else _default(option.default)}"
        rows[f" {option.name}"] = f"{stated}: {option.help}" if option.help else stated
    say_facts(rows)


def _default(value: Any) -> str:
    return "no default" if value is None else f"default {json.dumps(value)}"


def _say_layers(facts: "BackboneFacts") -> None:
    image = "x".join(map(str, facts.image))
    say("", f"layers for images of {image} ({facts.weights:,} weights)".replace(",", " "))
    rows = [
        (f"  {layer}", str(shape[0]), "x".join(map(str, shape[1:])) or "vector", "the code" if layer == facts.code else "")
        for layer, shape in facts.layers.items()
    ]
    say_table(("  layer", "channels", "map", ""), rows)
