"""What a person sees: results on stdout, everything else on stderr. Knows rich, knows no torch."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import TaskID

    from avtcli.events import Event, OnEvent

PLAIN_SECONDS = 10.0
"""How often a plain line tells the progress where there is no terminal."""


@contextlib.contextmanager
def results_alone_on_stdout() -> Iterator[None]:
    """Send what anything prints meanwhile, C code and child processes included, to stderr."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            stdout = sys.__stdout__.fileno() if sys.__stdout__ else None
        except (OSError, ValueError):
            stdout = None
        if stdout is not None:
            kept = os.dup(stdout)
            os.dup2(2, stdout)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, stdout)
        yield


@contextlib.contextmanager
def reporting() -> Iterator["OnEvent"]:
    """Render events on stderr: a live bar on a terminal, a plain line now and then elsewhere; nothing else on stdout."""
    from avtcli.events import ignore

    with results_alone_on_stdout():
        if int(os.environ.get("RANK", "0")) > 0:  # one process of several speaks
            yield ignore
        elif sys.stderr.isatty():
            with _live() as on_event:
                yield on_event
        else:
            yield _plain()


@contextlib.contextmanager
def _live() -> Iterator["OnEvent"]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from avtcli import events

    console = Console(stderr=True, markup=False, highlight=False, no_color="NO_COLOR" in os.environ or None)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def on_event(event: "Event") -> None:
            if isinstance(event, events.Progress):
                if event.task not in tasks:
                    tasks[event.task] = progress.add_task(event.task, total=event.total, detail="")
                progress.update(tasks[event.task], completed=event.done, total=event.total, detail=event.detail)
            else:
                for line in _lines(event):
                    progress.console.print(line, soft_wrap=True)

        yield on_event


def _plain() -> Callable[["Event"], None]:
    from avtcli import events

    said: dict[str, float] = {}
    began: dict[str, tuple[float, int]] = {}

    def on_event(event: "Event") -> None:
        if not isinstance(event, events.Progress):
            for line in _lines(event):
                print(line, file=sys.stderr, flush=True)
            return
        now = time.monotonic()
        began.setdefault(event.task, (now, event.done))
        if event.done < event.total and now - said.get(event.task, began[event.task][0]) < PLAIN_SECONDS:
            return
        said[event.task] = now
        since, first = began[event.task]
        left = (event.total - event.done) * (now - since) / max(1, event.done - first)
        eta = f"  {_duration(left)} left" if event.done < event.total else ""
        detail = f"  {event.detail}" if event.detail else ""
        print(f"{event.task}: {event.done}/{event.total} {event.unit}{detail}{eta}", file=sys.stderr, flush=True)

    return on_event


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def _lines(event: "Event") -> list[str]:
    from avtcli import events

    if isinstance(event, events.Started):
        width = max(len(label) for label, _ in event.facts)
        return [f"{label:<{width}}  {value}" for label, value in event.facts]
    if isinstance(event, events.Saved):
        return [f"saved {event.path}"]
    if isinstance(event, events.Notice):
        return [event.text]
    return []


def say(*lines: str) -> None:
    """Print lines of a result on stdout."""
    for line in lines:
        print(line)


def say_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(value, indent=2))


def say_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout: the first column to the left, figures to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        cells = [f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())
