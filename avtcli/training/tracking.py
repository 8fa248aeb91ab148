"""Reporting of a run to experiment trackers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from avtcli import registry
from avtcli.contracts import Tracker
from avtcli.events import Notice, OnEvent


class Tracking:
    """The trackers of a run, in the main process; other processes name none.

    A tracker that raises an exception is reported once by a `Notice` and not called again; training continues.

    Args:
        names: NAME or NAME:VARIANT of each tracker.
        on_event: receives the notices.

    Raises:
        AvtError: for an unknown name or a broken plugin, before training.
    """

    def __init__(self, names: Sequence[str], *, on_event: OnEvent) -> None:
        self.trackers: dict[str, Tracker] = {name: registry.build("tracker", name, {}) for name in names}
        self.on_event = on_event

    def start(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        """Begin or continue a run after `step` steps; config is plain JSON."""
        if self.trackers:
            (run / "trackers").mkdir(exist_ok=True)
        self._call("start", lambda tracker: tracker.start(run, config, step))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values after `step` steps."""
        self._call("log", lambda tracker: tracker.log(step, values))

    def finish(self) -> None:
        """End the run."""
        self._call("finish", lambda tracker: tracker.finish())

    def _call(self, what: str, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # a plugin's code can fail in any way
                del self.trackers[name]
                cause = f"{type(error).__name__}: {error}".rstrip(": ")
                self.on_event(Notice(f"the tracker '{name}' failed in {what} and is not used further: {cause}"))
