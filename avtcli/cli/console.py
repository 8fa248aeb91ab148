"""Console output: results on stdout, everything else on stderr."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from avtcli import events
from avtcli.runtime.launcher import read_launch

PLAIN_SECONDS = 10.0
"""Seconds between progress lines where there is no terminal."""

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
    with _renderer() as render:

        def on_event(event: events.Event) -> None:
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


def say_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout: the first column to the left, figures to the right."""
    texts = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = [f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())
