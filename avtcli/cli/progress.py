"""Events of a running command on stderr: a live line for each task on a terminal, plain lines elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from avtcli import events
from avtcli.cli.layout import fact_lines, printable, width_of, wrapped

PLAIN_SECONDS = 10.0
"""Seconds between progress lines where there is no terminal."""
BAR = 24
"""Characters of a bar at most; one of fewer than a third is left out."""


def renderer() -> contextlib.AbstractContextManager[events.OnEvent]:
    """Return what renders the events of a command."""
    return _live() if sys.stderr.isatty() else contextlib.nullcontext(plain_renderer())


@contextlib.contextmanager
def _live() -> Iterator[events.OnEvent]:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    console = Console(stderr=True, markup=False, highlight=False, no_color="NO_COLOR" in os.environ or None)

    class Line(ProgressColumn):
        def render(self, task: Task) -> Text:
            elapsed = task.elapsed if task.finished_time is None else task.finished_time
            figures = (
                f"{task.completed:.0f}/{task.total:.0f}",
                _clock(elapsed, "elapsed"),
                _clock(task.time_remaining, "left"),
            )
            room, share = console.width - 1, task.completed / task.total if task.total else 1.0
            before, after = progress_line(task.description, figures, task.fields["detail"], room)
            full = min(BAR, room - len(before) - len(after) - 4) if before else 0
            if full < BAR // 3:
                return Text("  ".join(filter(None, (before, after))))
            done, mark = round(full * share), "-" if console.options.ascii_only else "━"
            parts = (f"{before}  ", ""), (mark * done, "bar.complete"), (mark * (full - done), "bar.back"), (f"  {after}", "")
            return Text.assemble(*parts)

    row, logged, tasks = Line(Column(no_wrap=True)), set[str](), dict[str, Any]()
    progress = Progress(row, console=console)

    def on_event(event: events.Event) -> None:
        if not isinstance(event, events.Progress):
            for line in _lines(event):
                progress.console.print(line, soft_wrap=True)
            return
        if event.task not in tasks:
            tasks[event.task] = progress.add_task(printable(event.task), total=event.total, detail="")
        elif not event.done:
            progress.reset(tasks[event.task])
        detail = printable(event.detail)
        progress.update(tasks[event.task], completed=event.done, total=event.total, detail=detail, refresh=not event.done)
        if event.done >= event.total:  # its line goes into the log, in the order of time, once: a task may come often
            ended = tasks.pop(event.task)
            if event.task not in logged:
                logged.add(event.task)
                progress.console.print(next(row.render(task) for task in progress.tasks if task.id == ended))
            progress.remove_task(ended)

    progress.start()
    try:
        yield on_event
    finally:
        with contextlib.suppress(OSError):  # the terminal may be gone
            progress.stop()


def progress_line(task: str, figures: tuple[str, ...], detail: str, room: int) -> tuple[str, str]:
    """Return what stands before and after the bar; the detail, then words of the task, give way to count and times."""
    details = detail.split("  ") if detail else []
    for count in range(len(details), -1, -1):
        after = "  ".join([*figures, *details[:count]])
        if len(task) + 2 + len(after) <= room:
            return task, after
    return progress_line(task.rpartition(" ")[0].rstrip(":"), figures, "", room) if task else ("", after)


def _clock(seconds: float | None, word: str) -> str:
    return f"{'-:--:--' if seconds is None else timedelta(seconds=round(seconds))} {word}"


def plain_renderer() -> events.OnEvent:
    """Return what prints events as plain lines."""
    printed: dict[str, float] = {}
    began: dict[str, tuple[float, int]] = {}

    def on_event(event: events.Event) -> None:
        if not isinstance(event, events.Progress):
            print("\n".join(_lines(event)), file=sys.stderr, flush=True)
            return
        now = time.monotonic()
        if not event.done or event.task not in began:
            began[event.task], printed[event.task] = (now, event.done), now
        since, first = began[event.task]
        if event.done < event.total and now - printed[event.task] < PLAIN_SECONDS:
            return
        printed[event.task] = now
        left = timedelta(seconds=round((event.total - event.done) * (now - since) / max(1, event.done - first)))
        eta = f"  {left} left" if event.done < event.total else ""
        detail = f"  {event.detail}" if event.detail else ""
        line = f"{event.task}: {event.done}/{event.total} {event.unit}{detail}{eta}"
        print(printable(line), file=sys.stderr, flush=True)
        if event.done >= event.total:  # a task may come again, later
            del began[event.task]

    return on_event


def _lines(event: events.Notice | events.Started | events.Saved) -> list[str]:
    room = width_of(sys.stderr)
    if isinstance(event, events.Started):
        return fact_lines([(label, printable(value)) for label, value in event.facts], room)
    return wrapped(printable(event.text if isinstance(event, events.Notice) else f"saved {event.path}"), room, "  ")
