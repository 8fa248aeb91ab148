"""Pretraining: THE loop, top to bottom."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import Signals

import torch

from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.toml_text import to_toml
from avtcli.data.datasets import listings_of
from avtcli.data.training_loader import Batch
from avtcli.errors import AvtError, InterruptedRunError, RunFailedError
from avtcli.events import OnEvent, Progress, Saved
from avtcli.runtime.devices import choose_device, memory_errors_explained
from avtcli.runtime.launcher import connect
from avtcli.runtime.processes import agree, lost_processes_explained, resume_command, run_in_main
from avtcli.runtime.signals import Stop, stop_signals
from avtcli.storage.checkpoints import list_checkpoints
from avtcli.storage.files import clear_leftovers, refuse_existing, to_json, write_file
from avtcli.storage.metrics_log import MetricsLog
from avtcli.storage.run_data import read_bad_images
from avtcli.storage.run_folders import create_run, default_folder, is_run, locked, outcome_recorded
from avtcli.training.monitor import Monitor, Outcome, constant_mace
from avtcli.training.optimizer import build_optimizer
from avtcli.training.run_log import EARLY_REPORTS, LossLog, Tracking, describe_run, record_bad_images
from avtcli.training.step import Trainer
from avtcli.training.training_setup import TrainingSetup, build_training_setup
from avtcli.training.training_state import restore_state, save_state

LOG_EVERY = 20  # steps between readings of the losses from the device
SKIPPED_IN_A_ROW = 3  # steps that were not finite, after which a run ends
FIRST_SAVE_MINUTES = 1.0  # after the start


@dataclass(frozen=True)
class PretrainResult:
    """What `avt pretrain` reports; both errors are of fresh transformations of the images that `evaluated_on` names."""

    run: str
    steps: int
    epochs: float
    seconds: float
    loss: float | None
    mace_px: float | None
    constant_mace_px: float | None
    evaluated_on: str
    labelled: bool  # whether the images have labels of several classes, which a probe needs
    recipe: str
    skipped_steps: int
    skipped_images: int


def pretrain(
    config: PretrainConfig,
    *,
    run: Path | None,
    resume: bool,
    on_event: OnEvent,
    stopping: Callable[[OnEvent], AbstractContextManager[Stop]] = stop_signals,
) -> PretrainResult:
    """Pretrain into a run folder.

    Args:
        config: the settings; for a resumed run its own, see `training_state.resumed_config`.
        run: the folder, new, or for a resumed run the one to go on in; none for a new one of the default name.
        resume: whether to go on from the newest checkpoint, or from the start where none was saved yet.
        on_event: receives what happens, in the main process only.
        stopping: how signals become the wish to stop, while the run lasts.

    Raises:
        AvtError: before anything is written, if something is not right.
        RunFailedError: if steps are not finite, a reader or the disk fails; what was learned until then is saved.
        InterruptedRunError: after a signal, with the state saved.
    """
    if run is not None and not resume:
        refuse_existing(run, advice="go on with it by --resume instead of --out" if is_run(run) else "")
    connect(choose_device(config.device), on_event=on_event)  # a signal that comes before the others do ends it at once
    with stopping(on_event) as stop:
        setup = build_training_setup(config, run=run, resume=resume, on_event=on_event)
        on_event(describe_run(setup))
        tracking = Tracking(setup.config.trackers, setup.group, on_event=on_event)
        folder = _run_folder(setup, run, resume=resume)
        with lost_processes_explained(), memory_errors_explained(), folder as opened, tracking:
            optimizer = build_optimizer(setup.config, setup.net)
            restored = restore_state(setup, opened, optimizer, on_event=on_event) if setup.continues else None
            recorded = outcome_recorded(opened, steps=setup.total_steps)
            with recorded if setup.accelerator.is_main_process else nullcontext():
                return _train(setup, opened, optimizer, tracking, restored=restored, stop=stop, on_event=on_event)


@contextmanager
def _run_folder(setup: TrainingSetup, run: Path | None, *, resume: bool) -> Iterator[Path]:
    """Make the folder, or open the one that is there, and hold its lock, in the main process; yield it in all."""
    with ExitStack() as stack:
        yield run_in_main(setup.group, lambda: _open_folder(setup, run, stack, resume=resume))


def _open_folder(setup: TrainingSetup, run: Path | None, stack: ExitStack, *, resume: bool) -> Path:
    config, listings = setup.config, listings_of(setup.data)
    names = config.dataset.name, config.backbone.name, config.objective.name
    folder = run or default_folder(*names)
    while not resume:
        try:
            create_run(folder, to_toml(config), setup.environment, listings=listings)
            stack.callback(_remove_failed_start, folder)
            break
        except AvtError:
            if run is not None or not os.path.lexists(folder):
                raise
            folder = default_folder(*names)  # taken meanwhile
    stack.enter_context(locked(folder))
    clear_leftovers(folder / "checkpoints", exclusive=True)
    if resume and not list_checkpoints(folder / "checkpoints"):
        MetricsLog(folder / "metrics.jsonl").cut_after(0)  # of steps whose state was never saved, or is gone
    return folder


def _remove_failed_start(run: Path) -> None:
    """Delete a run folder that never got a checkpoint, so that the same command can be given again."""
    if not list_checkpoints(run / "checkpoints"):
        shutil.rmtree(run, ignore_errors=True)


def _train(
    setup: TrainingSetup,
    run: Path,
    optimizer: torch.optim.Optimizer,
    tracking: Tracking,
    *,
    restored: tuple[int, float] | None,
    stop: Stop,
    on_event: OnEvent,
) -> PretrainResult:
    config, accelerator, total = setup.config, setup.accelerator, setup.total_steps
    main, began = accelerator.is_main_process, time.monotonic()
    metrics = MetricsLog(run / "metrics.jsonl")

    # the step to begin at, and images
    start, seconds_before = restored or (0, 0.0)
    trainer = Trainer(setup, optimizer, on_event=on_event)
    loader = setup.build_loader(setup.open_images())

    saved = start if restored else -1

    def save(step: int) -> None:
        nonlocal saved
        if step != saved:
            seconds = seconds_before + time.monotonic() - began
            run_in_main(setup.group, lambda: on_event(Saved(save_state(setup, run, step, trainer.optimizer, seconds=seconds))))
            saved = step

    monitor = Monitor(setup, metrics, tracking, stop=stop, on_event=on_event)
    tracking.start(run, config.model_dump(mode="json", exclude_none=True), start)
    losses = LossLog(setup, metrics, tracking, start=start, on_event=on_event)
    save_at = time.monotonic() + 60 * min(FIRST_SAVE_MINUTES, config.save_every)
    batches = loader.read(start, total)
    if main:
        on_event(Progress("pretraining", start, total, "steps"))

    for step in range(start, total + 1):
        # the next batch: this process's samples, every view on the device
        batch, failure = None, ""
        if step < total and not stop.number:
            with losses.waiting():
                batch, failure = _next(batches)

        # what is due after `step` steps, in every process alike
        overdue = main and time.monotonic() > save_at
        signalled, due, failure = agree(setup.group, stop.number * (step < total), overdue, failure)
        reported = step % LOG_EVERY == 0 or step - start in EARLY_REPORTS or step % setup.steps_per_epoch == 0 or step == total
        if reported or due or signalled or failure:
            losses.flush(wait=bool(step == total or due or signalled or failure or monitor.is_due(step)))
            failure = record_bad_images(setup, run, on_event=on_event) or failure
        if step == total or due or (step == 0 and not failure):  # at 0: a disk that is too small fails here, not after an hour
            save(step)
            save_at = time.monotonic() + 60 * config.save_every
        outcome = Outcome(failure=failure, signal=signalled)
        if outcome == Outcome():
            with losses.pausing():
                outcome = monitor.maybe_evaluate(step)
        if outcome != Outcome() or losses.skipped_in_a_row >= SKIPPED_IN_A_ROW:
            if step:
                save(step)
            raise _ending(setup, run, step, outcome)
        if batch is None:
            break

        # one step
        result = trainer.step(step, batch)
        losses.add({"step": step + 1, "epoch": step // setup.steps_per_epoch, "lr": result.rate}, result)
    return _finish(setup, run, metrics, monitor, seconds=seconds_before + time.monotonic() - began)


def _next(batches: Iterator[Batch]) -> tuple[Batch | None, str]:
    """Return the next batch, or why there is none."""
    try:
        return next(batches), ""
    except AvtError as error:
        return None, str(error)


def _ending(setup: TrainingSetup, run: Path, step: int, outcome: Outcome) -> AvtError:
    """Return the error that ends a run early, with the command that goes on."""
    go_on = f"Go on with:\n  {resume_command(run, processes=setup.accelerator.num_processes)}"
    saved = f"The state after step {step} is saved in {run}."
    if outcome.signal:
        text = f"Stopped by {Signals(outcome.signal).name} after step {step}; the state is saved. {go_on}"
        return InterruptedRunError(text, outcome.signal, run.absolute())
    if outcome.failure:
        return RunFailedError(f"{outcome.failure}\n{saved} {go_on}" if step else outcome.failure)
    if outcome.collapse:
        return RunFailedError(f"{outcome.collapse} Stopped. {saved} {go_on}")
    checkpoint, rate = list_checkpoints(run / "checkpoints")[0], setup.config.schedule.peak / 3
    return RunFailedError(
        f"{SKIPPED_IN_A_ROW} steps in a row had a loss or gradient that is not finite. Try a new run with `--lr {rate:.1g}`; "
        f"the last good checkpoint is {checkpoint}."
    )


def _finish(setup: TrainingSetup, run: Path, metrics: MetricsLog, monitor: Monitor, *, seconds: float) -> PretrainResult:
    mace_px = monitor.final_mace(setup.total_steps) if setup.accelerator.is_main_process else None
    record_bad_images(setup, run, on_event=monitor.on_event)

    def write() -> PretrainResult:
        lines = [line for line in metrics.read() if "loss" in line]
        losses = [line["loss"] for line in lines if line["epoch"] == lines[-1]["epoch"] and line["loss"] is not None]
        result = PretrainResult(
            run=str(run),
            steps=setup.total_steps,
            epochs=round(setup.total_steps / setup.steps_per_epoch, 4),
            seconds=round(seconds, 1),
            loss=sum(losses) / len(losses) if losses else None,
            mace_px=mace_px,
            constant_mace_px=constant_mace(setup),
            evaluated_on=setup.evaluated_on,
            labelled=(labels := setup.data.train.labels) is not None and bool((labels != labels[0]).any()),
            recipe=setup.config.recipe,
            skipped_steps=sum("skipped" in line for line in lines),
            skipped_images=len(read_bad_images(run)),
        )
        write_file(run / "result.json", to_json(asdict(result)), replace=True)
        return result

    return run_in_main(setup.group, write)
