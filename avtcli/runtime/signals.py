"""Signals as requests to finish the step."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Remembers the first signal that asked the run to stop; 0 while there is none."""

    number = 0


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into a request to finish the step; a second one leaves at once."""
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.number:
            os._exit(128 + number)
        stop.number = number

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    try:
        before = {number: signal.signal(number, note) for number in numbers}
    except ValueError:  # signals reach the main thread only: elsewhere the caller minds them
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
