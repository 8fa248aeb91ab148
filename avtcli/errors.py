"""Errors by exit code.

An `AvtError` is printed as one message without traceback; any other exception is a bug and keeps its traceback.
"""

import difflib
import signal
from collections.abc import Iterable
from pathlib import Path


class AvtError(Exception):
    """Bad usage or bad input (exit code 2)."""

    exit_code = 2


class RunFailedError(AvtError):
    """A run that failed with valid usage and input (exit code 1)."""

    exit_code = 1


class InterruptedRunError(AvtError):
    """A signal stopped a run after its state was saved in the folder `run` (exit code 128 + signal number)."""

    def __init__(self, message: str, signal_number: int, run: Path) -> None:
        super().__init__(message)
        self.exit_code, self.run = 128 + signal_number, run


class SignalReceived(KeyboardInterrupt):
    """A signal ends the command, wherever it is; no `except Exception` stops it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class BadImageError(AvtError):
    """An image that cannot be used."""


class ShapeError(AvtError):
    """A tensor of unexpected shape."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'? " for the known name closest to `name`, or an empty string."""
    near = difflib.get_close_matches(name[:100], list(known), n=1)
    return f"Did you mean '{near[0]}'? " if near else ""


def shown(value: object) -> str:
    """Return a value as Python writes it, shortened to what a message can hold."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def one_line(error: BaseException) -> str:
    """Return an error's name and the first line of its message, if any."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]]).rstrip(".")
