"""Console output: results on stdout, everything else on stderr."""

import contextlib
import itertools
import json
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from avtcli import events
from avtcli.runtime.launcher import read_launch

PLAIN_SECONDS = 10.0
"""Seconds between progress lines where there is no terminal."""
SHORT = 16
"""Characters of a cell that is never split."""
MIN_COLUMNS = 40
"""A narrower terminal is written to as if it had as many."""
NBSP = "\N{NO-BREAK SPACE}"
_FIGURE = re.compile(r"[-+]?[\d.][\d. ]*(e[-+]?\d+)?( ?[%x])?( ± [\d.]+\*?)?( \(\d+ of \d+\))?")

saved_paths: list[Path] = []
"""What the running command has saved so far, in order."""


def printable(text: str) -> str:
    """Escape what a terminal would obey or could not encode: control characters, and names of files that are not UTF-8."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


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
    """Render events on stderr, as a live bar on a terminal and as plain lines elsewhere; keep stdout for the result."""
    saved_paths.clear()
    with results_alone_on_stdout(), _renderer() as render:

        def on_event(event: events.Event) -> None:
            if isinstance(event, events.Saved):
                saved_paths.append(event.path)
            with contextlib.suppress(OSError):  # the terminal may be gone, and the work goes on
                render(event)

        yield on_event


def _renderer() -> contextlib.AbstractContextManager[events.OnEvent]:
    if read_launch().rank > 0:  # only the first of several processes reports
        return contextlib.nullcontext(events.ignore)
    return _live() if sys.stderr.isatty() else contextlib.nullcontext(_plain())


@contextlib.contextmanager
def _live() -> Iterator[events.OnEvent]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, markup=False, highlight=False, no_color="NO_COLOR" in os.environ or None)
    task, detail = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[detail]"))
    columns = (task, BarColumn(bar_width=24), MofNCompleteColumn(), detail, TimeRemainingColumn(compact=True))
    progress, tasks = Progress(*columns, console=console), dict[str, Any]()

    def on_event(event: events.Event) -> None:
        if isinstance(event, events.Progress):
            if event.task not in tasks:
                tasks[event.task] = progress.add_task(printable(event.task), total=event.total, detail="")
            detail = printable(event.detail)
            progress.update(tasks[event.task], completed=event.done, total=event.total, detail=detail)
        else:
            progress.console.print(printable("\n".join(_lines(event))), soft_wrap=True)

    progress.start()
    try:
        yield on_event
    finally:
        with contextlib.suppress(OSError):  # the terminal may be gone
            progress.stop()


def _plain() -> events.OnEvent:
    printed: dict[str, float] = {}
    began: dict[str, tuple[float, int]] = {}

    def on_event(event: events.Event) -> None:
        if not isinstance(event, events.Progress):
            print(printable("\n".join(_lines(event))), file=sys.stderr, flush=True)
            return
        now = time.monotonic()
        since, first = began.setdefault(event.task, (now, event.done))
        if event.done < event.total and now - printed.get(event.task, since) < PLAIN_SECONDS:
            return
        printed[event.task] = now
        left = timedelta(seconds=round((event.total - event.done) * (now - since) / max(1, event.done - first)))
        eta = f"  {left} left" if event.done < event.total else ""
        detail = f"  {event.detail}" if event.detail else ""
        line = f"{event.task}: {event.done}/{event.total} {event.unit}{detail}{eta}"
        print(printable(line), file=sys.stderr, flush=True)

    return on_event


def _lines(event: events.Notice | events.Started | events.Saved) -> list[str]:
    if isinstance(event, events.Started):
        return _aligned(event.facts)
    return [event.text if isinstance(event, events.Notice) else f"saved {event.path}"]


def _aligned(facts: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(label) for label, _ in facts), default=0)
    return [f"{label:<{width}}  {value}" for label, value in facts]


def say(*lines: str) -> None:
    """Print lines of a result on stdout."""
    for line in lines:
        print(printable(line))


def say_json(value: Any) -> None:
    """Print a result, a dataclass or plain data, as one JSON document on stdout."""
    print(json.dumps(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value, indent=2))


def say_facts(facts: Mapping[str, object]) -> None:
    """Print labels and values on stdout, a line each and aligned, without those that are None."""
    say(*_aligned([(label, _text(value)) for label, value in facts.items() if value is not None]))


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}".rstrip() for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ("; " if any(isinstance(part, dict) for part in value) else ", ").join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def width_of(stream: TextIO) -> int | None:
    """Columns that lines on a stream must fit in: $COLUMNS, else those of its terminal; none for a file or a pipe."""
    if os.environ.get("COLUMNS", "").isdecimal() or stream.isatty():
        return max(MIN_COLUMNS, shutil.get_terminal_size().columns)
    return None


def say_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, best: int | None = None) -> None:
    """Print a table on stdout that fits the terminal: words to the left, figures to the right, the best row marked.

    Where it is too wide, titles and texts take several lines, then columns go on below under the same first column. Only a word
    that is longer than a line is shortened, in its middle.

    Args:
        header: a title for each column.
        rows: a text for each column.
        best: the row to mark.
    """
    table = [[printable(cell).replace(" %", f"{NBSP}%") for cell in row] for row in (header, *rows)]
    if best is not None:
        table[best + 1][0] += " (best)"
    room, columns = width_of(sys.stdout) or sys.maxsize, [*zip(*table, strict=True)]
    first, others = _shortened(columns[0], room // 2), [_shortened(column, room) for column in columns[1:]]
    while True:
        count = len(others)  # as many as fit when all are as narrow as they can be
        while count > 1 and _total(_narrowest(c) for c in (first, *others[:count])) > room:
            count -= 1
        _print_columns([first, *others[:count]], room)
        others = others[count:]
        if not others:
            return
        print()


def _shortened(column: Sequence[str], limit: int) -> list[str]:
    def short(word: str) -> str:
        half = (limit - 1) // 2
        return word if len(word) <= limit else f"{word[:half]}…{word[len(word) - half :]}"

    return [" ".join(map(short, cell.split(" "))) for cell in column]


def _is_figures(column: Sequence[str]) -> bool:
    cells = [cell for cell in column[1:] if cell not in ("", "-")]
    return bool(cells) and all(_FIGURE.fullmatch(cell) for cell in cells)


def _narrowest(column: Sequence[str], *, title_only: bool = False) -> int:
    """The least width: the longest word; of cells that stay on one line, the longest cell."""
    whole = title_only or _is_figures(column)
    texts = [
        *column[0].split(" "),
        *(part for cell in column[1:] for part in ([cell] if whole or len(cell) <= SHORT else cell.split(" "))),
    ]
    return max(map(len, texts), default=0)


def _total(widths: Iterable[int]) -> int:
    found = [*widths]
    return sum(found) + 2 * (len(found) - 1)


def _print_columns(columns: Sequence[Sequence[str]], room: int) -> None:
    widths = [max(map(len, column)) for column in columns]
    for title_only in (True, False):  # titles give way first
        least = [_narrowest(column, title_only=title_only) for column in columns]
        while _total(widths) > room and widths != least:
            i = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
            widths[i] -= 1
    figures = [_is_figures(column) for column in columns]
    for row in zip(*columns, strict=True):
        parts = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        for line in itertools.zip_longest(*parts, fillvalue=""):
            cells = (f"{c:>{w}}" if right else f"{c:<{w}}" for c, w, right in zip(line, widths, figures, strict=True))
            print("  ".join(cells).rstrip().replace(NBSP, " "))


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Split a text into lines at its spaces."""
    if len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
