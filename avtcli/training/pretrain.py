"""Pretraining: THE loop, top to bottom."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.toml_text import to_toml
from avtcli.data.epoch_table import sample_epoch_table
from avtcli.data.resident_images import build_images, training_batches
from avtcli.errors import AvtError, InterruptedRunError, RunFailedError
from avtcli.events import Notice, OnEvent, Progress, Saved
from avtcli.models.model_building import load_weights
from avtcli.runtime.environment import environment_changes
from avtcli.runtime.signals import Stop, stop_signals
from avtcli.storage.checkpoints import clear_leftovers, load_newest, save_checkpoint
from avtcli.storage.files import refuse_existing, replace_file, to_json
from avtcli.storage.metrics_log import MetricsLog
from avtcli.storage.run_folders import create_run, lock_run, read_env
from avtcli.training.monitor import Monitor
from avtcli.training.optimizer import build_optimizer, load_optimizer, optimizer_tensors
from avtcli.training.step import Trainer, make_views
from avtcli.training.training_setup import TrainingSetup, build_training_setup

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
        on_event: told what happens, in the main process only.

    Raises:
        AvtError: before anything is written, if something is not right.
        RunFailedError: if the loss is not finite, or the disk fails; the last checkpoint stands.
        InterruptedRunError: after a signal, with the state saved.
    """
    if not resume:
        refuse_existing(run)
    with stop_signals() as stop:
        setup = build_training_setup(config, resume=resume, on_event=on_event)
        with _run_folder(setup, run, resume=resume):
            return _train(setup, run, resume=resume, stop=stop, on_event=on_event)


@contextmanager
def _run_folder(setup: TrainingSetup, run: Path, *, resume: bool) -> Iterator[None]:
    """Make the folder, or take up the one that is there, and hold its lock; the main process alone."""
    if not setup.accelerator.is_main_process:
        setup.accelerator.wait_for_everyone()
        yield
        return
    if not resume:
        create_run(run, to_toml(setup.config), setup.environment)
    lock = lock_run(run)
    try:
        clear_leftovers(run / "checkpoints")
        setup.accelerator.wait_for_everyone()
        yield
    finally:
        lock.release()


def _train(setup: TrainingSetup, run: Path, *, resume: bool, stop: Stop, on_event: OnEvent) -> PretrainResult:
    config, accelerator = setup.config, setup.accelerator
    main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    device = accelerator.device
    metrics, began = MetricsLog(run / "metrics.jsonl"), time.monotonic()

    # weights, optimiser, the step to begin at, and images
    optimizer = build_optimizer(setup.config, setup.net)
    start, seconds_before = _restore(setup, run, optimizer, metrics, on_event=on_event) if resume else (0, 0.0)
    trainer = Trainer(setup, optimizer)
    images = build_images(setup.data.train, setup.indices, device=device, shorter=config.augment.resize, workers=setup.workers)

    def save(step: int) -> None:
        accelerator.wait_for_everyone()
        if main:
            seconds = seconds_before + time.monotonic() - began
            on_event(Saved(_save(setup, run, step, trainer.optimizer, seconds=seconds)))
        accelerator.wait_for_everyone()

    pending: list[tuple[dict[str, Any], Tensor]] = []
    part_names: list[str] = []

    def flush() -> None:
        """Read the losses of the last steps from the device, all at once, and write them down."""
        if not pending:
            return
        values = accelerator.reduce(torch.stack([row for _, row in pending]), "sum").tolist()
        lines = [{**about, **dict(zip(part_names, row, strict=True))} for (about, _), row in zip(pending, values, strict=True)]
        pending.clear()
        bad = next((line for line in lines if line["loss"] - line["loss"] != 0), None)
        if bad is not None:
            raise RunFailedError(
                f"The loss was {bad['loss']} at step {bad['step']}. The last checkpoint in {run}/checkpoints is from before; "
                f"try a new run with a lower rate: `--lr {config.schedule.peak / 3:.1g}`."
            )
        if main:
            metrics.append(lines)
            done = lines[-1]["step"]
            rate = (done - start) / (time.monotonic() - loop_began)
            wait = waited / (time.monotonic() - loop_began)
            detail = f"loss {lines[-1]['loss']:.4f}  {rate * config.batch_size:.0f} pairs/s  data wait {wait:.0%}"
            on_event(Progress("pretraining", done, setup.total_steps, "steps", detail))

    monitor = Monitor(setup, metrics, on_event=on_event)
    if start == 0 and not resume:
        save(0)  # a disk that cannot hold a checkpoint fails here, not after an hour
    saved_at, waited, table, table_epoch = time.monotonic(), 0.0, None, -1
    loop_began = time.monotonic()
    if main:
        on_event(Progress("pretraining", start, setup.total_steps, "steps"))

    for step in range(start, setup.total_steps):
        epoch, index = divmod(step, len(setup.bounds))

        # the batch: this process's rows of the epoch's table, both views on the device
        asked = time.monotonic()
        if table is None or epoch != table_epoch:
            table, table_epoch = sample_epoch_table(config.seed, epoch, len(images), setup.family, setup.size), epoch
            left = setup.bounds[index : index + setup.total_steps - step]  # told at once, so that they can be read ahead
            batches = [table.order[first:last][rank::world] for first, last in left]
            reading = training_batches(images, batches, table, config.augment, setup.size)
        first, last = setup.bounds[index]
        rows = table.order[first:last][rank::world]
        x, y, target = make_views(setup, next(reading), rows, table)
        waited += time.monotonic() - asked

        # one step
        loss, rates = trainer.step(step, x, y, target, count=last - first)

        # what is worth keeping
        parts = {"loss": loss.per_sample, **loss.parts}
        part_names = list(parts)
        about = {"step": step + 1, "epoch": epoch, "lr": rates[0]}
        pending.append((about, torch.stack([part.detach().float().sum() for part in parts.values()]) / (last - first)))
        ended = index + 1 == len(setup.bounds)
        due = main and time.monotonic() - saved_at > 60 * config.save_every
        signalled, due = _agree(accelerator, stop.number, due, step=step + 1)
        if ended or signalled or due or (step + 1 - start) % LOG_EVERY == 0 or step + 1 == setup.total_steps:
            flush()
        collapsed = monitor.maybe_evaluate(step + 1)
        if signalled or due or collapsed or step + 1 == setup.total_steps:
            save(step + 1)
            saved_at = time.monotonic()
        if collapsed:
            raise RunFailedError(
                f"{collapsed} Stopped after step {step + 1}; the state is saved in {run}. Go on all the same with:\n"
                f"  avt pretrain --resume {run}"
            )
        if signalled and step + 1 < setup.total_steps:
            raise InterruptedRunError(
                f"Stopped by signal {signalled} after step {step + 1}; the state is saved. Go on with:\n"
                f"  avt pretrain --resume {run}",
                signalled,
            )
    return _finish(setup, run, metrics, monitor, seconds=seconds_before + time.monotonic() - began)


def _agree(accelerator: Accelerator, signalled: int, due: bool, *, step: int) -> tuple[int, bool]:
    """Share the wish to stop or save, so that all processes do so after the same step.

    GPUs do so every so many steps only: to read what they agreed on, each has to wait for its own work.
    """
    if accelerator.num_processes == 1:
        return signalled, due
    if accelerator.device.type != "cpu" and step % LOG_EVERY:
        return 0, False
    flags = torch.tensor([signalled, int(due)], device=accelerator.device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return int(flags[0]), bool(flags[1])


def _save(setup: TrainingSetup, run: Path, step: int, optimizer: torch.optim.Optimizer, *, seconds: float) -> Path:
    tensors, groups = optimizer_tensors(optimizer)
    model = setup.net.state_dict()
    broken = next((name for name, t in model.items() if t.is_floating_point() and not t.isfinite().all()), None)
    if broken is not None:
        raise RunFailedError(f"{broken} is not finite after step {step}: nothing was saved over the last good checkpoint.")
    about = {
        "config": setup.config.model_dump(mode="json", exclude_none=True),
        "model": setup.spec.model_dump(mode="json", exclude_none=True),
        "param_groups": groups,
        "scaler": setup.accelerator.scaler.state_dict() if setup.accelerator.scaler is not None else None,
        "environment": setup.environment,
        "seconds": seconds,
    }
    return save_checkpoint(run / "checkpoints", step, model=model, state=tensors, about=about)


def _restore(
    setup: TrainingSetup, run: Path, optimizer: torch.optim.Optimizer, metrics: MetricsLog, *, on_event: OnEvent
) -> tuple[int, float]:
    """Load the newest whole checkpoint into net and optimiser; return its step and the seconds spent before."""
    checkpoint = load_newest(run / "checkpoints", on_event=on_event)
    about = checkpoint.about
    if "imported" in about:
        raise AvtError(
            f"{run} was made by `avt import`: it holds weights alone and no optimiser to go on with. Start a new run instead."
        )
    before = about["environment"]
    if before["data_fingerprint"] != setup.data.fingerprint:
        raise AvtError(
            f"The data set '{setup.config.dataset.name}' is not the one that {run} was trained on: its fingerprint was "
            f"{before['data_fingerprint']}, found {setup.data.fingerprint}. Point --data-dir to the same images."
        )
    load_weights(setup.net, checkpoint.model, path=checkpoint.folder)
    load_optimizer(optimizer, checkpoint.state, about["param_groups"])
    if about["scaler"] is not None and setup.accelerator.scaler is not None:
        setup.accelerator.scaler.load_state_dict(about["scaler"])
    step = int(about["step"])
    if setup.accelerator.is_main_process:
        for change in environment_changes(before, setup.environment):
            on_event(Notice(f"{change}: the numbers that follow may differ in their last bits"))
        metrics.cut_after(step)
        env = read_env(run)
        replace_file(
            run / "env.json", to_json({**env, "resumed": [*env.get("resumed", []), {"step": step, **setup.environment}]})
        )
        on_event(Notice(f"resuming {run} after step {step}"))
    return step, float(about["seconds"])


def _finish(setup: TrainingSetup, run: Path, metrics: MetricsLog, monitor: Monitor, *, seconds: float) -> PretrainResult:
    accelerator, steps = setup.accelerator, setup.total_steps
    mace_px = monitor.final_mace(steps) if accelerator.is_main_process else None
    lines = [line for line in metrics.read() if "loss" in line]
    losses = [line["loss"] for line in lines if line["epoch"] == lines[-1]["epoch"]]
    result = PretrainResult(
        run=str(run),
        steps=steps,
        epochs=round(steps / len(setup.bounds), 4),
        seconds=round(seconds, 1),
        loss=sum(losses) / len(losses) if losses else None,
        mace_px=mace_px,
        recipe=setup.config.recipe,
    )
    if accelerator.is_main_process:
        replace_file(run / "result.json", to_json(asdict(result)))
    accelerator.wait_for_everyone()
    return result
