"""Events of a running command: frozen values, rendered by the console."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Notice:
    """A message to the user; of several processes the first alone says it, or each where `everywhere`."""

    text: str
    everywhere: bool = False


@dataclass(frozen=True)
class Started:
    """Resolved settings, (label, value) pairs, before the computation starts."""

    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Progress:
    """Progress of a task in units; a new name starts a new task. The detail gives its current figures."""

    task: str
    done: int
    total: int
    unit: str
    detail: str = ""


@dataclass(frozen=True)
class Saved:
    """A file or checkpoint was saved."""

    path: Path


Event = Notice | Started | Progress | Saved
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Discard an event."""
