"""Saving the state of a run, and restoring it exactly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from avtcli import recipes
from avtcli.config.components import Plugin, flags_of
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import merge, moved_data, validate
from avtcli.config.toml_text import to_toml
from avtcli.data.epoch_table import batch_count
from avtcli.errors import AvtError, RunFailedError
from avtcli.events import Notice, OnEvent
from avtcli.models.model_building import load_weights
from avtcli.runtime.environment import environment_changes
from avtcli.runtime.processes import run_in_main
from avtcli.storage.checkpoints import Checkpoint, list_checkpoints, load_checkpoint, load_newest, save_checkpoint
from avtcli.storage.files import write_file
from avtcli.storage.metrics_log import MetricsLog
from avtcli.storage.run_folders import read_env, write_env
from avtcli.training.optimizer import load_optimizer, optimizer_tensors
from avtcli.training.training_setup import TrainingSetup


def save_state(setup: TrainingSetup, run: Path, step: int, optimizer: torch.optim.Optimizer, *, seconds: float) -> Path:
    """Save a checkpoint and return its folder.

    Raises:
        RunFailedError: if a weight is not finite, or the disk fails; earlier checkpoints are intact.
    """
    tensors, groups = optimizer_tensors(optimizer)
    model = setup.net.state_dict()
    broken = next((name for name, t in model.items() if t.is_floating_point() and not t.isfinite().all()), None)
    if broken is not None:
        raise RunFailedError(f"{broken} is not finite after step {step}: nothing was saved over the last good checkpoint.")
    about = {
        "config": setup.config.model_dump(mode="json", exclude_none=True),
        "model": setup.spec.model_dump(mode="json", exclude_none=True),
        "layers": list(setup.net.encoder.layers),  # for shell completion, which builds no network
        "param_groups": groups,
        "scaler": setup.accelerator.scaler.state_dict() if setup.accelerator.scaler is not None else None,
        "environment": setup.environment,
        "seconds": seconds,
    }
    return save_checkpoint(run / "checkpoints", step, model=model, state=tensors, about=about)


def resumed_config(run: Path, given: Mapping[str, Any], *, on_event: OnEvent) -> PretrainConfig:
    """Return the settings that a run goes on with: its own, but for those that may change.

    The newest complete checkpoint states them. What may change comes from the run's config.toml, then from `given`, and each
    change is reported; a config.toml that is damaged is left out with a notice.

    Raises:
        AvtError: if neither states settings, or another setting was edited in config.toml.
    """
    where, stored, written = run / "config.toml", None, None
    if list_checkpoints(run / "checkpoints"):
        settings = load_newest(run / "checkpoints").about["config"]
        stored = validate(PretrainConfig, settings, where=str(run))
    try:
        written = validate(PretrainConfig, recipes.load(str(where), kind="pretrain"), where=str(where))
    except AvtError as error:
        if stored is None:
            raise
        on_event(Notice(f"{where} is not used, the settings come from the checkpoint: {error}"))
    base = stored or written
    assert base is not None
    changing = {name for name, flag in flags_of(PretrainConfig).items() if flag.on_resume}
    if stored is not None and written is not None:
        edited = _differences(stored.model_dump(exclude=changing), written.model_dump(exclude=changing))
        if edited:
            raise AvtError(
                f"{where} was edited: {'; '.join(edited)}. A run keeps its settings: undo that, or start a new run with "
                f"`--recipe {where}`."
            )
    followed = written or base
    over = {**followed.model_dump(include=changing), **given}
    if given.get("dataset") is not None:
        over["dataset"] = moved_data(base.dataset, Plugin.model_validate(given["dataset"])).model_dump()
    config = validate(PretrainConfig, merge(base.model_dump(), over), where="--resume")
    for change in _differences(base.model_dump(), config.model_dump()):
        on_event(Notice(f"setting changed: {change}"))
    return config


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the settings that differ, `KEY is A, was B`, those of tables by their dotted names."""
    out = []
    for key in {**before, **after}:
        a, b = before.get(key), after.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key} is {b}, was {a}")
    return out


def check_resumable(about: Mapping[str, Any], setup: TrainingSetup, *, run: Path) -> None:
    """Refuse to go on from a checkpoint that is imported, beyond the steps asked for, or of another data set.

    Raises:
        AvtError: which of these it is.
    """
    step, before = about["step"], about["environment"]
    if "imported" in about:
        raise AvtError(f"{run} was made by `avt import` and holds no optimiser to go on with. Start a new run instead.")
    if step > setup.total_steps:
        raise AvtError(
            f"{run} has reached step {step}, beyond the {setup.total_steps} steps asked for: give more --epochs or --max-steps."
        )
    count, batch, world = len(setup.indices), setup.config.batch_size, before.get("processes", 1)
    steps, now = batch_count(count, batch, world=world), setup.accelerator.num_processes
    if step and steps != setup.steps_per_epoch:
        raise AvtError(
            f"{run} has {steps} steps an epoch with --processes {world}, and would have {setup.steps_per_epoch} with {now}: "
            f"the last {count % batch} images of an epoch are too few for {max(world, now)}. Give --processes {world}."
        )
    if before.get("data_fingerprint") != setup.data.fingerprint:
        raise AvtError(
            f"'{setup.config.dataset.name}' is not the data set of {run}: its fingerprint was "
            f"{before.get('data_fingerprint')}, found {setup.data.fingerprint}. Give the same images with --dataset."
        )


def restore_state(setup: TrainingSetup, run: Path, optimizer: torch.optim.Optimizer, *, on_event: OnEvent) -> tuple[int, float]:
    """Load the newest complete checkpoint into network and optimiser; return its step and the seconds spent before it.

    Damaged checkpoints are set aside. All processes take the one that the main process found.

    Raises:
        AvtError: if none is complete, it has no optimiser state, it is beyond the steps asked for, or the data set is another.
    """
    root, scaler, found = run / "checkpoints", setup.accelerator.scaler, list[Checkpoint]()

    def find() -> str:
        found.append(load_newest(root, repair=True, on_event=on_event))
        return found[0].folder.name

    name = run_in_main(setup.group, find)
    checkpoint = found[0] if found else load_checkpoint(root / name)
    about, step = checkpoint.about, int(checkpoint.about["step"])
    check_resumable(about, setup, run=run)
    load_weights(setup.net, checkpoint.model, path=checkpoint.folder)
    try:
        load_optimizer(optimizer, checkpoint.state, about["param_groups"])
        if about["scaler"] is not None and scaler is not None:
            scaler.load_state_dict(about["scaler"])
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise AvtError(
            f"{checkpoint.folder} holds the optimiser state of another run: {type(error).__name__}: {error}."
        ) from error
    run_in_main(setup.group, lambda: _record_resumption(setup, run, step, about["environment"], on_event))
    return step, float(about["seconds"])


def _record_resumption(setup: TrainingSetup, run: Path, step: int, before: dict[str, Any], on_event: OnEvent) -> None:
    for change in environment_changes(before, setup.environment):
        on_event(Notice(f"{change}: the numbers that follow may differ in their last bits"))
    MetricsLog(run / "metrics.jsonl").cut_after(step, on_event=on_event)
    env = read_env(run)
    before_that = env.get("resumed")
    resumed = [*(before_that if isinstance(before_that, list) else []), {"step": step, **setup.environment}]
    write_env(run, {**env, "resumed": resumed})
    write_file(run / "config.toml", to_toml(setup.config).encode(), replace=True)
    more = f"; {run} is complete: for more give --epochs or --max-steps" if step == setup.total_steps else ""
    on_event(Notice(f"resuming {run} after step {step} of {setup.total_steps}{more}"))
