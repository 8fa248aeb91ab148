"""`avt plugins`: what is installed, ours and anyone's; whether it keeps its promises; and a package to begin one's own."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from avtcli.cli.console import reporting, say, say_json, say_table
from avtcli.cli.options import Json

app = typer.Typer(help="List, check and write plugins.", no_args_is_help=True, rich_markup_mode="markdown")

KindName = Literal["backbone", "transform", "dataset", "objective"]


@app.callback()
def _plugins() -> None:
    """Look after backbones, transformations, data sets and objectives, ours and anyone's."""


@app.command("list")
def list_plugins(as_json: Json = False) -> None:
    """List every installed plugin, importing none: kind, name, the distribution that brings it."""
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
    kind: Annotated[KindName | None, typer.Option(help="Of the plugin, where several kinds have one of that name.")] = None,
    as_json: Json = False,
) -> None:
    """Try every promise that a plugin makes: seed, shapes, gradients, statistics, inverse, documentation, import.

    Example: `avt plugins check nin`
    """
    from avtcli.errors import RunFailedError
    from avtcli.plugin_kit.plugin_checks import check_plugin, find_plugin

    info = find_plugin(name, kind)
    with reporting():
        checks = check_plugin(name, kind=info.kind)
    broken = [check for check in checks if not check.ok]
    if as_json:
        rows = [{"check": c.name, "ok": c.ok, "problem": c.problem, "figures": c.figures} for c in checks]
        about = {"kind": info.kind, "name": info.name, "distribution": info.distribution, "version": info.version}
        say_json({**about, "ok": not broken, "checks": rows})
    else:
        width = max(len(check.name) for check in checks)
        for c in checks:
            say(f"{'ok' if c.ok else 'BROKEN':<6}  {c.name:<{width}}  {c.problem or c.figures}".rstrip())
    if broken:
        raise RunFailedError(
            f"The {info.kind} '{info.name}' of {info.origin} breaks {len(broken)} of {len(checks)} promises, the first: "
            f"{broken[0].name}: {broken[0].problem}."
        )


@app.command("new")
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make; its name becomes the plugin's.")],
    kind: Annotated[KindName, typer.Option(help="What the plugin is.")] = "backbone",
) -> None:
    """Write a plugin package that works as it is, with its test, to be changed into your own.

    Example: `avt plugins new my-backbone`
    """
    from avtcli.plugin_kit.scaffold import new_plugin

    written = new_plugin(folder, kind=kind)
    say(f"wrote the {kind} '{written.name}' in {folder}: {', '.join(written.files)}", "next:")
    say(f"  pip install -e {folder}", f"  avt plugins check {written.name}", f"  pytest {folder}")
