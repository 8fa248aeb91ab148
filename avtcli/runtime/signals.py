"""Signals as requests to finish the step."""

import contextlib
import os
import signal
import time
from _thread import start_new_thread
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from avtcli.errors import InterruptedRunError
from avtcli.events import Notice, OnEvent
from avtcli.runtime.launcher import is_launched

NAMES: Final = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
"""From a terminal, a container, or a cluster's scheduler before it ends a job."""
ASKING: Final = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
_REPEAT_SECONDS = 1.0


def heeded_signals() -> tuple[int, ...]:
    """Return the signals that ask a command to stop: those that were not ignored when it started, as under nohup.

    A handler that is not Python's, which could not be restored, stays too.
    """
    return tuple(number for number in ASKING if signal.getsignal(number) not in (signal.SIG_IGN, None))


class Stop:
    """Number of the first signal that asked the run to stop; 0 while there is none."""

    number = 0


@contextmanager
def stop_signals(on_event: OnEvent) -> Iterator[Stop]:
    """Turn the signals that ask to stop into a request to finish the step; a second one exits at once.

    In one of several processes a second signal within a second is the same one: the launcher passes on what the whole group
    already got.
    """
    stop, since, shared = Stop(), 0.0, is_launched()

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if not stop.number:
            stop.number, since = number, time.monotonic()
            _announce(on_event)
        elif not shared or time.monotonic() - since > _REPEAT_SECONDS:
            leave_at_once(number)

    with handled_by(note):
        yield stop


@contextmanager
def interrupts(on_event: OnEvent) -> Iterator[Stop]:
    """For a caller in Python: turn Ctrl-C, or a notebook's interruption, into a request to finish the step.

    A second one raises KeyboardInterrupt at once. The other signals stay as the program has them.

    Raises:
        KeyboardInterrupt: in place of `InterruptedRunError`, or at the end, if the run was complete before it stopped.
    """
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.number:
            raise KeyboardInterrupt
        stop.number = number
        _announce(on_event)

    with handled_by(note, only=(signal.SIGINT,)):
        try:
            yield stop
        except InterruptedRunError as stopped:
            raise KeyboardInterrupt(f"The state is saved. Go on with avtcli.pretrain(resume={str(stopped.run)!r}).") from None
    if stop.number:
        raise KeyboardInterrupt("The run was complete before it could stop.")


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None], *, only: Collection[int] = ASKING) -> Iterator[None]:
    """Install a handler of `heeded_signals`, and restore the former ones at the end."""
    try:
        before = {number: signal.signal(number, handler) for number in heeded_signals() if number in only}
    except ValueError:  # Python delivers signals to the main thread only; elsewhere the caller handles them
        before = {}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def leave_at_once(number: int) -> None:
    """End the process with the exit code of a signal; a terminal gets back the cursor that a progress bar hides."""
    with contextlib.suppress(OSError):
        os.write(2, b"\x1b[?25h" * os.isatty(2))
    os._exit(128 + number)


def _announce(on_event: OnEvent) -> None:
    """Say that the run stops, from a thread: the one that was interrupted may be in the middle of writing."""
    start_new_thread(on_event, (Notice("stopping after this step; again to leave at once"),))
