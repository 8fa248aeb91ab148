"""What a run reports while it trains: losses, read from the device some steps at a time, and experiment trackers."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avtcli import registry
from avtcli.contracts import Loss, Tracker
from avtcli.errors import RunFailedError
from avtcli.events import Notice, OnEvent, Progress
from avtcli.storage.metrics_log import MetricsLog
from avtcli.training.training_setup import TrainingSetup


class Tracking:
    """The trackers of a run, in the main process; other processes name none.

    A tracker that raises an exception is reported once by a `Notice` and not called again; training continues.

    Raises:
        AvtError: for an unknown name or a broken plugin, before training.
    """

    def __init__(self, names: Sequence[str], *, on_event: OnEvent) -> None:
        self.trackers: dict[str, Tracker] = {name: registry.build("tracker", name, {}) for name in names}
        self.on_event = on_event
        self._started = False

    def start(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        """Begin or continue a run after `step` steps; config is plain JSON."""
        self._started = True
        if self.trackers:
            (run / "trackers").mkdir(exist_ok=True)
        self._call("start", lambda tracker: tracker.start(run, config, step))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values after `step` steps."""
        self._call("log", lambda tracker: tracker.log(step, values))

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *error: object) -> None:
        if self._started:
            self._call("finish", lambda tracker: tracker.finish())

    def _call(self, what: str, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # a plugin's code can fail in any way
                del self.trackers[name]
                cause = f"{type(error).__name__}: {error}".rstrip(": ")
                self.on_event(Notice(f"the tracker '{name}' failed in {what} and is not used further: {cause}"))


class LossLog:
    """Collects the losses of steps; in the main process, logs one line per step and passes it to the trackers."""

    def __init__(self, setup: TrainingSetup, metrics: MetricsLog, tracking: Tracking, *, run: Path, start: int) -> None:
        self.setup, self.metrics, self.tracking, self.run, self.start = setup, metrics, tracking, run, start
        self.began, self.waited = time.monotonic(), 0.0
        self._pending: list[tuple[dict[str, Any], Tensor]] = []
        self._names: list[str] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as waiting for data."""
        asked = time.monotonic()
        yield
        self.waited += time.monotonic() - asked

    def add(self, line: dict[str, Any], loss: Loss, *, count: int) -> None:
        """Keep the losses of this process's samples on the device; `line` holds other figures, `count` is of all processes."""
        parts = {"loss": loss.per_sample, **loss.parts}
        self._names = list(parts)
        self._pending.append((line, torch.stack([part.detach().float().sum() for part in parts.values()]) / count))

    def flush(self) -> Progress:
        """Read the losses from the device, all at once, and write them.

        Raises:
            RunFailedError: if a loss is not finite.
        """
        setup, config = self.setup, self.setup.config
        values = setup.accelerator.reduce(torch.stack([row for _, row in self._pending]), "sum").tolist()
        losses = [dict(zip(self._names, row, strict=True)) for row in values]
        lines = [{**line, **loss} for (line, _), loss in zip(self._pending, losses, strict=True)]
        self._pending.clear()
        bad = next((line for line in lines if line["loss"] - line["loss"] != 0), None)
        if bad is not None:
            raise RunFailedError(
                f"The loss was {bad['loss']} at step {bad['step']}. The last checkpoint in {self.run}/checkpoints is "
                f"from before; try a new run with a lower learning rate: `--lr {config.schedule.peak / 3:.1g}`."
            )
        if setup.accelerator.is_main_process:
            self.metrics.append(lines)
            for line in lines:
                self.tracking.log(line["step"], {name: value for name, value in line.items() if name != "step"})
        done, seconds = lines[-1]["step"], time.monotonic() - self.began
        rate = (done - self.start) / seconds * config.batch_size
        detail = f"loss {lines[-1]['loss']:.4f}  {rate:.0f} pairs/s  data wait {self.waited / seconds:.0%}"
        return Progress("pretraining", done, setup.total_steps, "steps", detail)
