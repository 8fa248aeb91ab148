"""The `avt` command: its commands by name, each imported when it runs, and errors as messages with exit codes."""

import contextlib
import errno
import importlib
import io
import os
import re
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from avtcli import __version__
from avtcli.errors import AvtError, InterruptedRunError, SignalReceived, one_line, shown
from avtcli.runtime.launcher import Launch, is_connected, is_first_to_report, is_launched, read_launch
from avtcli.runtime.signals import handled_by, leave_at_once

COMMANDS = {
    "pretrain": ("pretrain", "pretrain", "Pretrain a backbone without labels."),
    "probe": ("probe", "probe", "Train a classifier on frozen features and report its test accuracy."),
    "evaluate": ("evaluate", "evaluate", "Measure how equivariant a representation is."),
    "runs": ("runs", "runs", "List runs with their state and best figures."),
    "compare": ("compare", "compare", "Compare the settings and figures of runs."),
    "report": ("report", "report", "Write one HTML page on runs: curves, decoded images, probes, settings."),
    "embed": ("embed", "embed", "Write the features of every image to one file."),
    "export": ("export", "export", "Export the encoder's weights, load them back in a fresh process, and compare."),
    "import": ("import_", "import_", "Convert a published checkpoint to a run folder; no code in the file is executed."),
    "gen-homographies": ("homographies", "gen_homographies", "Sample a bank of homographies for pretraining."),
    "bench": ("bench", "bench", "Benchmark each component against a baseline implementation on this machine."),
    "demo": ("demo", "demo", "End-to-end demo on bundled images: pretrain, probe, export, report."),
    "data": ("data", "app", "Check the images of a data set."),
    "doctor": ("doctor", "doctor", "Check the installation and this machine."),
    "recipes": ("recipes", "app", "List, show and copy recipes."),
    "plugins": ("plugins", "app", "List, show, check and write plugins."),
}
"""By name: the module in `avtcli.cli`, the function or Typer app in it, and the first line of its help."""


TABLE_COLUMNS = 120
"""Columns of a terminal from which the help is a table."""


def load_command(name: str) -> Any:
    """Import a command and build it."""
    module, attribute, _ = COMMANDS[name]
    loaded = getattr(importlib.import_module(f"avtcli.cli.{module}"), attribute)
    if isinstance(loaded, typer.Typer):
        return _readable(typer.main.get_group(loaded))
    alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    alone.command(name)(loaded)
    return _readable(typer.main.get_command(alone))


def _readable(command: Any) -> Any:
    """Show the help of a command as plain lines where the columns of its table would cut options off."""
    from avtcli.cli.layout import width_of

    if (width_of(sys.stdout) or TABLE_COLUMNS) < TABLE_COLUMNS:
        for each in (command, *getattr(command, "commands", {}).values()):
            each.rich_markup_mode = None
    return command


@contextlib.contextmanager
def raising_signals() -> Iterator[None]:
    """Raise `SignalReceived` at a signal, so that temporary files are cleaned up; a second one exits at once.

    Signals that were ignored at the start, as under nohup, stay so. Pretraining handles signals itself while it runs.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            leave_at_once(number)
        raise SignalReceived(number)

    with handled_by(stop):
        yield


class AvtGroup(TyperGroup):
    """Loads the command that runs, and prints an `AvtError` as one message; a bug keeps its traceback."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the placeholder, which the help lists, by the command."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name else None, rest

    def _main_shell_completion(self, *args: Any, **named: Any) -> None:
        """Answer a shell that completes a command line, as its variable says; typer ends the process then."""
        if any(name.startswith("_") and name.endswith("_COMPLETE") for name in os.environ):
            from avtcli.cli.completion import quiet_completion

            with quiet_completion():
                super()._main_shell_completion(*args, **named)

    def make_context(self, info_name: str | None, args: list[str], *others: Any, **named: Any) -> Any:
        """Parse the command line, with `~` as the home folder after `=` too, where a shell leaves it."""
        _readable(self)
        with _usage_errors_in_one_message():
            return super().make_context(info_name, [*map(_expanded, args)], *others, **named)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit with the code of an `AvtError`, 1 for what the system refuses, or 128 + n after signal n."""
        launch = Launch()
        try:
            launch = read_launch()
            with raising_signals(), _usage_errors_in_one_message():
                return super().invoke(ctx)
        except SignalReceived as stop:
            from avtcli.cli.console import saved_paths

            if launch.world == 1 or not is_connected():  # else the launcher says why it ends its processes
                written = f"{saved_paths[-1]} was saved before" if saved_paths else "nothing was written"
                _print(f"Stopped by {stop}; {written}.")
            raise typer.Exit(128 + stop.number) from None
        except AvtError as error:
            agreed = isinstance(error, InterruptedRunError)  # by all processes
            if launch.rank == 0 or not agreed:
                _print(str(error) if agreed else f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except (ImportError, OSError) as error:
            if "torch" not in sys.modules and getattr(error, "errno", None) is None:
                _print(f"error: {one_line(error)}. What avt needs cannot be imported: `avt doctor` says what to do.")
                raise typer.Exit(1) from None
            if isinstance(error, ImportError) or error.errno in (None, errno.EPIPE):  # a reader that left is no error
                raise
            names = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
            where = names or "The operating system"
            _print(f"error: {where}: {error.strerror}. Check the path, its permissions and the disk.")
            raise typer.Exit(1) from None


def _expanded(text: str) -> str:
    flag, equals, path = text.partition("=") if text.startswith("--") else ("", "", text)
    return f"{flag}{equals}{os.path.expanduser(path)}"


def _print(message: str) -> None:
    """Print a message on stderr, once for all processes that fail alike."""
    from avtcli.cli.layout import printable, width_of, wrapped

    if is_first_to_report(message):
        with contextlib.suppress(OSError):  # the terminal may be gone
            typer.echo("\n".join(wrapped(printable(message), width_of(sys.stderr), "  ", keep="  avt ")), err=True)


@contextlib.contextmanager
def _usage_errors_in_one_message() -> Iterator[None]:
    """Print what the command line's parser refuses as any other error, with the help that has the way out."""
    try:
        yield
    except Exception as error:
        message = error.format_message().removesuffix(".") if hasattr(error, "format_message") else ""
        if not message:  # no error of the parser, or the help, which is printed already
            raise
        if message.startswith("Usage: "):  # the help of a command without arguments
            typer.echo(message, err=True)
            raise typer.Exit(2) from None
        message = re.sub("Value error, |, unable to parse.*", "", message)
        if isinstance(cause := error.__cause__, ValueError) and hasattr(cause, "errors") and " is not one of " not in message:
            message += f", found {shown(cause.errors()[0]['input'])}"
        if "'cuda:" in message:
            message += "; choose a GPU by CUDA_VISIBLE_DEVICES=N, and give --device cuda"
        context = getattr(error, "ctx", None)
        way_out = f" See `{context.command_path} --help`." if context else ""
        _print(f"error: {message}{'' if message.endswith('?') else '.'}{way_out}")
        raise typer.Exit(2) from None


app = typer.Typer(
    name="avt",
    cls=AvtGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"avt {__version__}")
        raise typer.Exit


@app.callback()
def _avt(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Pretrain a vision backbone without labels by autoencoding transformations, measure it, export the weights."""


for _name, (_, _, _help) in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def main() -> None:
    """Run `avt`; one of several processes skips the interpreter's shutdown, in which process-group threads can abort."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a line for each attempt to reach the first process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # the terminal may be gone
                stream.reconfigure(errors="backslashreplace")  # letters that its encoding lacks
    try:
        app(prog_name="avt")
    except SystemExit as end:
        if not is_launched():
            raise
        code = int(end.code or 0)
    with contextlib.suppress(OSError):
        sys.stdout.flush()  # outside of the handler, so that the files of the command are closed
        sys.stderr.flush()
    os._exit(code)
