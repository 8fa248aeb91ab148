"""Pretraining: THE loop, top to bottom."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.toml_text import to_toml
from avtcli.errors import InterruptedRunError, RunFailedError
from avtcli.events import OnEvent, Progress, Saved
from avtcli.runtime.signals import Stop, stop_signals
from avtcli.storage.checkpoints import clear_leftovers
from avtcli.storage.files import refuse_existing, replace_file, to_json
from avtcli.storage.metrics_log import MetricsLog
from avtcli.storage.run_folders import create_run, lock_run
from avtcli.training.monitor import Monitor
from avtcli.training.optimizer import build_optimizer
from avtcli.training.run_log import LossLog, Tracking
from avtcli.training.step import Trainer
from avtcli.training.training_setup import TrainingSetup, build_training_setup
from avtcli.training.training_state import restore_state, save_state

LOG_EVERY = 20  # steps between readings of the losses from the device


@dataclass(frozen=True)
class PretrainResult:
    """What `avt pretrain` reports."""

    run: str
    steps: int
    epochs: float
    seconds: float
    loss: float | None
    mace_px: float | None
    recipe: str


def pretrain(config: PretrainConfig, *, run: Path, resume: bool, on_event: OnEvent) -> PretrainResult:
    """Pretrain into a run folder.

    Args:
        config: the settings; for a resumed run its own.
        run: the folder, new, or for a resumed run the one to go on in.
        resume: whether to go on from the newest checkpoint.
        on_event: receives what happens, in the main process only.

    Raises:
        AvtError: before anything is written, if something is not right.
        RunFailedError: if the loss is not finite, or the disk fails; the last checkpoint is kept.
        InterruptedRunError: after a signal, with the state saved.
    """
    if not resume:
        refuse_existing(run)
    with stop_signals() as stop:
        setup = build_training_setup(config, resume=resume, on_event=on_event)
        tracking = Tracking(setup.config.trackers if setup.accelerator.is_main_process else (), on_event=on_event)
        with _run_folder(setup, run, resume=resume), tracking:
            return _train(setup, run, tracking, resume=resume, stop=stop, on_event=on_event)


@contextmanager
def _run_folder(setup: TrainingSetup, run: Path, *, resume: bool) -> Iterator[None]:
    """Make the folder, or open the one that is there, and hold its lock; the main process alone."""
    with ExitStack() as stack:
        if setup.accelerator.is_main_process:
            if not resume:
                create_run(run, to_toml(setup.config), setup.environment)
            stack.callback(lock_run(run).release)
            clear_leftovers(run / "checkpoints")
        setup.accelerator.wait_for_everyone()
        yield


def _train(
    setup: TrainingSetup, run: Path, tracking: Tracking, *, resume: bool, stop: Stop, on_event: OnEvent
) -> PretrainResult:
    config, accelerator, total = setup.config, setup.accelerator, setup.total_steps
    main, began = accelerator.is_main_process, time.monotonic()
    metrics = MetricsLog(run / "metrics.jsonl")

    # weights, optimiser, the step to begin at, and images
    optimizer = build_optimizer(config, setup.net)
    start, seconds_before = restore_state(setup, run, optimizer, metrics, on_event=on_event) if resume else (0, 0.0)
    trainer = Trainer(setup, optimizer)
    loader = setup.build_loader(setup.open_images())

    def save(step: int) -> None:
        accelerator.wait_for_everyone()
        if main:
            seconds = seconds_before + time.monotonic() - began
            on_event(Saved(save_state(setup, run, step, trainer.optimizer, seconds=seconds)))
        accelerator.wait_for_everyone()

    monitor = Monitor(setup, metrics, tracking, on_event=on_event)
    if start == 0 and not resume:
        save(0)  # a disk that cannot hold a checkpoint fails here, not after an hour
    tracking.start(run, config.model_dump(mode="json", exclude_none=True), start)
    losses, saved_at = LossLog(setup, metrics, tracking, run=run, start=start), time.monotonic()
    if main:
        on_event(Progress("pretraining", start, total, "steps"))
    batches = loader.read(start, total)

    for step in range(start, total):
        # the batch: this process's samples, every view on the device
        with losses.waiting():
            batch = next(batches)

        # one step
        loss, rates = trainer.step(step, batch)

        # what is worth keeping
        epoch, index = divmod(step, setup.steps_per_epoch)
        losses.add({"step": step + 1, "epoch": epoch, "lr": rates[0]}, loss, count=batch.count)
        due = main and time.monotonic() - saved_at > 60 * config.save_every
        signalled, due = _agree(accelerator, stop.number, due, step=step + 1)
        ended = index + 1 == setup.steps_per_epoch
        if ended or signalled or due or (step + 1 - start) % LOG_EVERY == 0 or step + 1 == total:
            progress = losses.flush()
            if main:
                on_event(progress)
        collapsed = monitor.maybe_evaluate(step + 1)
        if signalled or due or collapsed or step + 1 == total:
            save(step + 1)
            saved_at = time.monotonic()
        if collapsed:
            raise RunFailedError(
                f"{collapsed} Stopped after step {step + 1}; the state is saved in {run}. Go on all the same with:\n"
                f"  avt pretrain --resume {run}"
            )
        if signalled and step + 1 < total:
            raise InterruptedRunError(
                f"Stopped by signal {signalled} after step {step + 1}; the state is saved. Go on with:\n"
                f"  avt pretrain --resume {run}",
                signalled,
            )
    return _finish(setup, run, metrics, monitor, seconds=seconds_before + time.monotonic() - began)


def _agree(accelerator: Accelerator, signalled: int, due: bool, *, step: int) -> tuple[int, bool]:
    """Share the wish to stop or save, so that all processes do so after the same step."""
    if accelerator.num_processes == 1:
        return signalled, due
    if accelerator.device.type != "cpu" and step % LOG_EVERY:  # to read a GPU's flags is to wait for its work
        return 0, False
    flags = torch.tensor([signalled, int(due)], device=accelerator.device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return int(flags[0]), bool(flags[1])


def _finish(setup: TrainingSetup, run: Path, metrics: MetricsLog, monitor: Monitor, *, seconds: float) -> PretrainResult:
    steps, main = setup.total_steps, setup.accelerator.is_main_process
    lines = [line for line in metrics.read() if "loss" in line]
    losses = [line["loss"] for line in lines if line["epoch"] == lines[-1]["epoch"]]
    result = PretrainResult(
        run=str(run),
        steps=steps,
        epochs=round(steps / setup.steps_per_epoch, 4),
        seconds=round(seconds, 1),
        loss=sum(losses) / len(losses) if losses else None,
        mace_px=monitor.final_mace(steps) if main else None,
        recipe=setup.config.recipe,
    )
    if main:
        replace_file(run / "result.json", to_json(asdict(result)))
    setup.accelerator.wait_for_everyone()
    return result
