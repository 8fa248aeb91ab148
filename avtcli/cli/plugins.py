"""`avt plugins`: what is installed, ours and anyone's."""

import typer

from avtcli.cli.console import say_json, say_table
from avtcli.cli.options import Json

app = typer.Typer(help="List the plugins.", no_args_is_help=True, rich_markup_mode="markdown")


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
