"""What a run reports: settings at the start, losses, read from the device some steps at a time, to experiment trackers too."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from avtcli import registry
from avtcli.config.run_length import describe_seconds
from avtcli.config.value_text import counted, flat_settings
from avtcli.contracts import Tracker
from avtcli.data.epoch_table import joined_rest
from avtcli.events import Notice, OnEvent, Progress, Started
from avtcli.models.siamese import batch_norms
from avtcli.runtime.devices import download, end_of_work
from avtcli.runtime.processes import gather_lists, run_in_main
from avtcli.storage.metrics_log import MetricsLog
from avtcli.storage.run_data import BadImage, append_bad_images, read_bad_images
from avtcli.training.collapse import format_figure
from avtcli.training.step import StepResult
from avtcli.training.training_setup import TrainingSetup

SLOW_STEPS, SLOW_STEPS_ON_GPU = 2, 20  # first steps, which compile, capture and fill caches
MEASURED_STEPS, MEASURED_SECONDS = 20, 5.0  # after them, of which either is enough to state the speed
EARLY_REPORTS = (2, 4, 8)  # steps after which losses are also read, so that slow steps are measured soon


def describe_run(setup: TrainingSetup) -> Started:
    """Say what a run resolved to."""
    config, parameters = setup.config, sum(p.numel() for p in setup.net.parameters())
    channels, (height, width) = setup.data.channels, setup.size
    execution = {"channels last": config.channels_last, "compiled (takes about half a minute)": config.compile}
    execution |= {"one graph a step": config.capture, "fused optimiser": config.optimizer.fused}
    chosen = [name for name, is_chosen in execution.items() if is_chosen]
    beyond = f"; --max-steps {config.max_steps} changes nothing" if (config.max_steps or 0) > setup.total_steps else ""
    epochs, count, world = counted(config.total_epochs, "epoch"), len(setup.indices), setup.accelerator.num_processes
    rest = joined_rest(count, config.batch_size, world=world)
    whose = "of all processes" if config.sync_bn else "of each process alone (--sync-bn: of all)"
    joined = f"; the last {rest} images of an epoch join the batch before, as each process needs 2" if rest else ""
    few = f", of which there are only {count}" if count < config.batch_size else ""
    norms = f", BatchNorm statistics {whose}" if world > 1 and any(batch_norms(setup.net.encoder)) else ""
    facts = (
        ("recipe", config.recipe),
        ("data", f"{config.dataset.name}: {count} images, {channels}x{height}x{width}"),
        ("monitor", setup.evaluated_on),
        ("backbone", f"{config.backbone.name}, {parameters:,} parameters with the objective's heads"),
        ("task", f"{config.objective.name} on {config.transform.name}"),
        ("device", ", ".join([setup.environment["device"], config.precision, *chosen])),
        ("batch", f"{config.batch_size}{few}{f' over {world} processes' if world > 1 else ''}{norms}"),
        ("steps", f"{setup.total_steps} ({setup.steps_per_epoch} an epoch, {epochs}){joined}{beyond}"),
        *([("readers", f"{setup.workers} process{'es' * (setup.workers != 1)}")] if setup.data.train.images is None else []),
        ("seed", str(config.seed)),
    )
    return Started(facts)


class Tracking:
    """The trackers of a run, in the main process; other processes have none.

    A tracker that raises an exception is reported once by a `Notice` and not called again; training continues.

    Raises:
        AvtError: in all processes, for an unknown name or a broken plugin, before training.
    """

    def __init__(self, names: Sequence[str], group: ProcessGroup | None = None, *, on_event: OnEvent) -> None:
        self.trackers: dict[str, Tracker] = {}
        run_in_main(group, lambda: self.trackers.update({name: registry.build("tracker", name, {}) for name in names}))
        self.on_event = on_event
        self._started = False

    def start(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        """Begin or continue a run after `step` steps; config is plain JSON, which trackers get by dotted name."""
        self._started = True
        if self.trackers:
            (run / "trackers").mkdir(exist_ok=True)
        self._call("start", lambda tracker: tracker.start(run, flat_settings(config), step))

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
    """Collects the losses of steps; in the main process, logs one line per step and passes it to the trackers.

    `skipped_in_a_row` is the longest series of skipped steps among those read from the device so far. The speed leaves out the
    slow first steps; a `Notice` states it as soon as it is measured, with the time left and options for a run of an hour.
    """

    def __init__(self, setup: TrainingSetup, metrics: MetricsLog, tracking: Tracking, *, start: int, on_event: OnEvent) -> None:
        self.setup, self.metrics, self.tracking, self.start, self.on_event = setup, metrics, tracking, start, on_event
        self.began, self.waited = time.monotonic(), 0.0
        self._first, self._speed_stated = start, False
        self._slow_until = start + (SLOW_STEPS if setup.accelerator.device.type == "cpu" else SLOW_STEPS_ON_GPU)
        self.skipped_in_a_row = 0
        self._series = 0
        self._pending: list[tuple[dict[str, Any], Tensor]] = []
        self._sent: tuple[list[dict[str, Any]], Tensor, torch.cuda.Event | None] = [], torch.empty(0), None
        self._names: tuple[str, ...] = ()
        self._work: torch.cuda.Event | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as waiting for data, but for a GPU that still had work when the data came."""
        asked = time.monotonic()
        yield
        if self._work is None or self._work.query():  # type: ignore[no-untyped-call]
            self.waited += time.monotonic() - asked

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Leave the time within, that of an evaluation, out of the speed."""
        paused = time.monotonic()
        yield
        self.began += time.monotonic() - paused

    def add(self, line: dict[str, Any], result: StepResult) -> None:
        """Keep the figures of a step on the device; `line` holds others."""
        self._names, self._work = result.names, end_of_work(result.figures.device)
        self._pending.append((line, result.figures))

    def flush(self, *, wait: bool) -> None:
        """Write and report the losses, read from the device all at once; what is not finite is null.

        A GPU, which works on steps ahead of it, is waited for where `wait`; else those are written that were flushed before.
        """
        self._write_sent()
        if self._pending:
            lines, figures = zip(*self._pending, strict=True)
            on_device = self.setup.accelerator.reduce(torch.stack(figures), "sum")
            self._sent = list(lines), *download(on_device)
            self._pending.clear()
            if wait or self._sent[2] is None:
                self._write_sent()

    def _write_sent(self) -> None:
        """Write what was sent to the host, once it has arrived."""
        lines, figures, arrived = self._sent
        if not lines:
            return
        self._sent = [], torch.empty(0), None
        if arrived is not None:
            arrived.synchronize()
        lines = [{**line, **self._figures(line["step"], row)} for line, row in zip(lines, figures.tolist(), strict=True)]
        run_in_main(self.setup.group, lambda: self._write(lines))

    def _write(self, lines: list[dict[str, Any]]) -> None:
        self.metrics.append(lines)
        for line in lines:
            self.tracking.log(line["step"], {k: value for k, value in line.items() if k != "step" and value is not None})
        done, seconds = lines[-1]["step"], time.monotonic() - self.began
        rate = (done - self.start) / seconds * self.setup.length.pairs_per_step
        detail = f"loss {format_figure(lines[-1]['loss'], '.4f')}  {rate:.0f} pairs/s  data wait {self.waited / seconds:.0%}"
        self.on_event(Progress("pretraining", done, self.setup.total_steps, "steps", detail))
        if self.start < self._slow_until:
            self.began, self.waited, self.start = time.monotonic(), 0.0, done
        elif not self._speed_stated and (done - self.start >= MEASURED_STEPS or seconds >= MEASURED_SECONDS):
            self._speed_stated = True
            self.on_event(Notice(self._speed_text(rate, done)))

    def _speed_text(self, rate: float, done: int) -> str:
        length = self.setup.length
        advice = length.advice(rate) if self._first == 0 else ""  # a run that goes on gets no shorter
        left = describe_seconds(length.seconds(rate, after=done))
        return "\n".join(filter(None, [f"{rate:.0f} pairs/s: {left} left", advice]))

    def _figures(self, step: int, row: list[float]) -> dict[str, Any]:
        losses = {name: value if isfinite(value) else None for name, value in zip(self._names[:-1], row, strict=False)}
        if not row[-1]:
            self._series = 0
            return losses
        self._series += 1
        self.skipped_in_a_row = max(self.skipped_in_a_row, self._series)
        self.on_event(Notice(f"step {step} was skipped and changed nothing: its loss or gradient was not finite"))
        return {**losses, "skipped": True}


def record_bad_images(setup: TrainingSetup, run: Path, *, on_event: OnEvent) -> str:
    """Add the images that any process could not use since the last call to the run's bad_images.csv, and report them.

    Returns:
        In every process, why the run must stop: more of them than it may skip; empty where it goes on.
    """
    if setup.data.train.images is not None:
        return ""
    found = gather_lists(setup.group, setup.bad_images.take_new())
    return run_in_main(setup.group, lambda: _record(setup, run, found, on_event)) if found else ""


def _record(setup: TrainingSetup, run: Path, found: Sequence[BadImage], on_event: OnEvent) -> str:
    for bad in append_bad_images(run, found):
        on_event(Notice(f"skipped: {bad.reason}"))
    repaired = setup.bad_images.repaired
    return setup.bad_images.problem([bad.reason for bad in read_bad_images(run) if bad.name not in repaired])
