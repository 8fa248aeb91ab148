"""Signals as requests to finish the step."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Number of the first signal that asked the run to stop; 0 while there is none."""

    number = 0


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into a request to finish the step; a second one exits at once."""
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.number:
            os._exit(128 + number)
        stop.number = number

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    except ValueError:  # Python delivers signals to the main thread only; elsewhere the caller handles them
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
