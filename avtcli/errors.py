"""What can go wrong, by the exit code it leaves.

A user's mistake becomes one message and no traceback. Anything that is not an `AvtError` is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class AvtError(Exception):
    """Something the user can act on: bad usage or bad input (exit code 2)."""

    exit_code = 2


class RunFailedError(AvtError):
    """The command was right, the input too, and the run failed all the same (exit code 1)."""

    exit_code = 1


class InterruptedRunError(AvtError):
    """A signal stopped the run after its state was saved (exit code 128 + the signal's number)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class ShapeError(AvtError):
    """A tensor has another shape than the function takes."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'? " for the known name nearest to `name`, or an empty string where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean '{near[0]}'? " if near else ""
