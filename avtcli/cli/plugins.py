"""`avt plugins`: list, check and write plugins."""

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from avtcli.cli.console import reporting, say, say_json, say_next, say_table
from avtcli.cli.options import Json

app = typer.Typer(help="List, check and write plugins.", no_args_is_help=True, rich_markup_mode="markdown")

KindName = Literal["backbone", "transform", "dataset", "objective", "exporter", "tracker"]
_KINDS = f"The plugin's kind: {', '.join(get_args(KindName))}."


@app.callback()
def _plugins() -> None:
    """Manage backbones, transformations, data sets, objectives, exporters and trackers, built in or installed."""


@app.command("list")
def list_plugins(as_json: Json = False) -> None:
    """List every installed plugin without importing it: kind, name, distribution.

    Example: `avt plugins list`
    """
    from avtcli import registry

    infos = registry.listing()
    if as_json:
        fields = ("kind", "name", "value", "distribution", "version")
        say_json([{field: getattr(info, field) for field in fields} for info in infos])
    else:
        say_table(("kind", "name", "from"), [(info.kind, info.name, info.origin) for info in infos])


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A plugin; with :VARIANT or :PATH where it takes one.")],
    kind: Annotated[KindName | None, typer.Option(metavar="KIND", help=f"{_KINDS} Default: the only one of the name.")] = None,
    as_json: Json = False,
) -> None:
    """Run the conformance checks: seed, shapes, gradients, statistics, inverse, documentation, import.

    Example: `avt plugins check nin`
    """
    from avtcli.errors import RunFailedError
    from avtcli.plugin_kit import check_plugin
    from avtcli.plugin_kit.plugin_checks import find_plugin

    info = find_plugin(name, kind)
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
