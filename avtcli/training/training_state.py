"""Saving the state of a run, and restoring it exactly."""

from pathlib import Path

import torch

from avtcli.errors import AvtError, RunFailedError
from avtcli.events import Notice, OnEvent
from avtcli.models.model_building import load_weights
from avtcli.runtime.environment import environment_changes
from avtcli.storage.checkpoints import load_newest, save_checkpoint
from avtcli.storage.files import replace_file, to_json
from avtcli.storage.metrics_log import MetricsLog
from avtcli.storage.run_folders import read_env
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
        "param_groups": groups,
        "scaler": setup.accelerator.scaler.state_dict() if setup.accelerator.scaler is not None else None,
        "environment": setup.environment,
        "seconds": seconds,
    }
    return save_checkpoint(run / "checkpoints", step, model=model, state=tensors, about=about)


def restore_state(
    setup: TrainingSetup, run: Path, optimizer: torch.optim.Optimizer, metrics: MetricsLog, *, on_event: OnEvent
) -> tuple[int, float]:
    """Load the newest complete checkpoint into network and optimiser; return its step and the seconds spent before it.

    Raises:
        AvtError: if none is complete, it has no optimiser state, or the data set is another one.
    """
    checkpoint, scaler = load_newest(run / "checkpoints", on_event=on_event), setup.accelerator.scaler
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
    if about["scaler"] is not None and scaler is not None:
        scaler.load_state_dict(about["scaler"])
    step = int(about["step"])
    if setup.accelerator.is_main_process:
        for change in environment_changes(before, setup.environment):
            on_event(Notice(f"{change}: the numbers that follow may differ in their last bits"))
        metrics.cut_after(step)
        env = read_env(run)
        env["resumed"] = [*env.get("resumed", []), {"step": step, **setup.environment}]
        replace_file(run / "env.json", to_json(env))
        on_event(Notice(f"resuming {run} after step {step}"))
    return step, float(about["seconds"])
