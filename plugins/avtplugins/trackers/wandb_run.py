"""Weights & Biases."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avtcli.contracts import Tracker
from avtplugins.trackers._continuation import Continuation, missing_library


class WandbRun(Tracker):
    """A run of Weights & Biases; its figures have the axis `step`, since the service's own step never goes back.

    wandb keeps what was logged in memory for a while: after a kill, all steps since the last end are recorded again.
    """

    def start(self, run_dir: Path, config: Mapping[str, Any], step: int) -> None:
        """Begin a run, or continue the one whose id was kept."""
        import wandb
        from accelerate.tracking import WandBTracker

        folder = run_dir / "trackers"
        self.kept = Continuation(folder / "wandb.json")
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        self.tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", "avt"),
            dir=str(folder),
            id=self.kept.id,
            name=run_dir.resolve().name,
            mode=mode,
            resume="allow" if self.kept.id and mode == "online" else None,
            config=dict(config),
            settings=wandb.Settings(console="off"),
        )
        self.tracker.start()
        self.kept.save(self.tracker.run.id)
        self.tracker.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record what is new."""
        if new := self.kept.take_new(step, values):
            self.tracker.log({"step": step, **new})

    def finish(self) -> None:
        """Wait until all is sent, or in the run's file."""
        self.tracker.finish()
        self.kept.save(self.tracker.run.id)


def wandb() -> Tracker:
    """Weights & Biases, as $WANDB_MODE says; without it and a login offline, in RUN/trackers/wandb for `wandb sync`."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise missing_library("wandb", error) from error
    return WandbRun()
