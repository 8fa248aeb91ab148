"""The losses of a run: kept on the device, read and written some steps at a time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avtcli.contracts import Loss
from avtcli.errors import RunFailedError
from avtcli.events import Progress
from avtcli.storage.metrics_log import MetricsLog
from avtcli.training.training_setup import TrainingSetup


class LossLog:
    """Collects the losses of steps, and writes one line per step to the metrics log.

    Args:
        setup: the run.
        metrics: the log; written by the main process alone.
        run: the run folder, for messages.
        start: the step that this process began at.
    """

    def __init__(self, setup: TrainingSetup, metrics: MetricsLog, *, run: Path, start: int) -> None:
        self.setup, self.metrics, self.run, self.start = setup, metrics, run, start
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
        """Keep the losses of a step on the device.

        Args:
            line: the step's other figures: step, epoch, lr.
            loss: of this process's samples.
            count: samples of all processes.
        """
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
        lines = [
            {**line, **dict(zip(self._names, row, strict=True))} for (line, _), row in zip(self._pending, values, strict=True)
        ]
        self._pending.clear()
        bad = next((line for line in lines if line["loss"] - line["loss"] != 0), None)
        if bad is not None:
            raise RunFailedError(
                f"The loss was {bad['loss']} at step {bad['step']}. The last checkpoint in {self.run}/checkpoints is from before; "
                f"try a new run with a lower rate: `--lr {config.schedule.peak / 3:.1g}`."
            )
        if setup.accelerator.is_main_process:
            self.metrics.append(lines)
        done, seconds = lines[-1]["step"], time.monotonic() - self.began
        rate = (done - self.start) / seconds * config.batch_size
        detail = f"loss {lines[-1]['loss']:.4f}  {rate:.0f} pairs/s  data wait {self.waited / seconds:.0%}"
        return Progress("pretraining", done, setup.total_steps, "steps", detail)
