"""Console output: results on stdout, everything else on stderr."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from avtcli import events
from avtcli.cli.layout import fact_lines, printable, table_lines, width_of, wrapped
from avtcli.cli.progress import plain_renderer, renderer
from avtcli.config.value_text import value_text
from avtcli.runtime.launcher import read_launch

saved_paths: list[Path] = []
"""What the running command has saved so far, in order."""


@contextlib.contextmanager
def results_alone_on_stdout() -> Iterator[None]:
    """Redirect stdout to stderr, for C code and child processes too."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # there may be no stdout
            kept = os.dup(1)
            os.dup2(2, 1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
        yield


@contextlib.contextmanager
def reporting() -> Iterator[events.OnEvent]:
    """Render events, see `rendering`, and keep stdout for the result, of C code and child processes too."""
    saved_paths.clear()
    with results_alone_on_stdout(), rendering() as render:

        def on_event(event: events.Event) -> None:
            if isinstance(event, events.Saved):
                saved_paths.append(event.path)
            render(event)

        yield on_event


@contextlib.contextmanager
def rendering() -> Iterator[events.OnEvent]:
    """Render events on stderr, as a live bar on a terminal and as plain lines elsewhere."""
    first = read_launch().rank == 0  # of several processes
    with renderer() if first else contextlib.nullcontext(_render_everywhere) as render:

        def on_event(event: events.Event) -> None:
            with contextlib.suppress(OSError):  # the terminal may be gone, and the work goes on
                render(event)

        yield on_event


def _render_everywhere(event: events.Event) -> None:
    if isinstance(event, events.Notice) and event.everywhere:
        plain_renderer()(event)


def say(*lines: str) -> None:
    """Print lines of a result on stdout; one that begins with two spaces, such as a command, is never split."""
    for line in lines:
        print("\n".join(wrapped(printable(line), width_of(sys.stdout), "  ")))


def say_json(value: Any) -> None:
    """Print a result, a dataclass or plain data, as one JSON document on stdout."""
    print(json.dumps(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value, indent=2))


def say_facts(facts: Mapping[str, object]) -> None:
    """Print labels and values on stdout, aligned, without those that are None."""
    texts = [(label, printable(value_text(value))) for label, value in facts.items() if value is not None]
    print(*fact_lines(texts, width_of(sys.stdout)), sep="\n")


def say_next(*commands: Sequence[str | Path]) -> None:
    """Print commands to go on with, quoted so that a shell takes them as they are, on a line each."""
    say("next:", *(f"  {shlex.join(map(str, words))}" for words in commands))


def say_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, best: int | None = None) -> None:
    """Print a table on stdout, see `table_lines`."""
    print(*table_lines(header, rows, best=best, room=width_of(sys.stdout)), sep="\n")
