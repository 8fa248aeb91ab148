"""The front door: the commands by name, and errors turned into one message and an exit code."""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from avtcli.cli import bench, demo, embed, evaluate, export, homographies, import_, plugins, pretrain, probe, recipes
from avtcli.errors import AvtError, InterruptedRunError


class AvtGroup(TyperGroup):
    """Prints a user's mistake as one message; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            typer.Exit: with the error's exit code.
        """
        try:
            return super().invoke(ctx)
        except AvtError as error:
            stopped, rank = isinstance(error, InterruptedRunError), os.environ.get("RANK", "0")
            if rank == "0":
                typer.echo(str(error) if stopped else f"error: {error}", err=True)
            elif not stopped:  # all processes stop together, and one says so
                typer.echo(f"error in process {rank}: {error}", err=True)
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    name="avt",
    cls=AvtGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"avt {version('avtcli')}")
        raise typer.Exit


@app.callback()
def _avt(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Pretrain a vision backbone without labels by autoencoding transformations, measure it, take the weights away."""


app.command("pretrain", cls=pretrain.OptionalValue)(pretrain.pretrain)
app.command("probe")(probe.probe)
app.command("evaluate")(evaluate.evaluate)
app.command("embed")(embed.embed)
app.command("export")(export.export)
app.command("import")(import_.import_)
app.command("gen-homographies")(homographies.gen_homographies)
app.command("bench")(bench.bench)
app.command("demo")(demo.demo)
app.add_typer(recipes.app, name="recipes")
app.add_typer(plugins.app, name="plugins")


def main() -> None:
    """Run `avt`.

    One of several processes leaves at once when it is done: threads that connect it to the others abort the interpreter's own
    farewell now and then.
    """
    try:
        app()
    except SystemExit as end:
        if "RANK" not in os.environ:
            raise
        code = int(end.code or 0)
    # outside of the handler, where nothing holds on to what the command had open
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
