"""`avt recipes`."""

from pathlib import Path
from typing import Annotated

import typer

from avtcli import recipes
from avtcli.cli.completion import complete_recipe
from avtcli.cli.console import say, say_json, say_next, say_table
from avtcli.cli.options import Json
from avtcli.storage.files import refuse_existing, write_file

app = typer.Typer(help="List, show and copy recipes.", no_args_is_help=True, rich_markup_mode="markdown")

_NAME = "Name of a recipe; see `avt recipes list`."
File = Annotated[Path | None, typer.Argument(metavar="FILE.toml", help="Default: ./NAME.toml.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help=_NAME, autocompletion=complete_recipe())]


@app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """List the recipes that come with avt.

    Example: `avt recipes list`
    """
    abouts = {name: recipes.parse(name, recipes.text(name))["about"] for name in recipes.names()}
    if as_json:
        say_json([{"name": name, **about} for name, about in abouts.items()])
    else:
        say_table(("recipe", "for", "what"), [(name, f"avt {a['kind']}", a["title"]) for name, a in abouts.items()])


@app.command("show")
def show(name: Name) -> None:
    """Print a recipe with its comments, which give the source of each value.

    Example: `avt recipes show cifar10-nin`
    """
    say(recipes.text(name).rstrip())


@app.command("copy")
def copy(name: Name, to: File = None) -> None:
    """Copy a recipe to a file, to be edited and run with `--recipe FILE.toml`.

    Example: `avt recipes copy cifar10-nin mine.toml`
    """
    to, text = to or Path(f"{Path(name).stem}.toml"), recipes.text(name)
    command = recipes.parse(name, text).get("about", {}).get("kind", "pretrain")
    refuse_existing(to, flag="FILE.toml")
    write_file(to, text.encode())
    say(f"copied to {to}")
    say_next(("avt", command, "--recipe", to))
