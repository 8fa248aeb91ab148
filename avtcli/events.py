"""What a run tells while it runs: frozen values, rendered by the console, collected by tests. Nothing here prints."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Notice:
    """Something the user should know, said once."""

    text: str


@dataclass(frozen=True)
class Started:
    """What the run resolved to: (label, value) pairs, before the first step."""

    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Progress:
    """How far a task is.

    Attributes:
        task: its name; a new name begins a new task.
        done: units done, counted from 0.
        total: units in all.
        unit: what is counted.
        detail: figures worth a glance.
    """

    task: str
    done: int
    total: int
    unit: str
    detail: str = ""


@dataclass(frozen=True)
class Saved:
    """A file or checkpoint is safe on disk."""

    path: Path


Event = Notice | Started | Progress | Saved
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Take an event and do nothing."""
