"""MLflow."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avtcli.contracts import Tracker
from avtplugins.trackers._continuation import Continuation, missing_library


class MlflowRun(Tracker):
    """A run of MLflow."""

    def start(self, run_dir: Path, config: Mapping[str, Any], step: int) -> None:
        """Begin a run, or continue the one whose id was kept; its parameters stay those of its start."""
        import mlflow
        from accelerate.tracking import MLflowTracker

        folder = run_dir.resolve() / "trackers"
        self.kept = Continuation(folder / "mlflow.json")
        self.has_own_store = not mlflow.is_tracking_uri_set()
        if self.has_own_store:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            mlflow.set_tracking_uri((folder / "mlruns").as_uri())
        known = self.kept.id
        self.tracker = MLflowTracker("avt", run_id=known, run_name=run_dir.resolve().name)
        self.tracker.start()
        self.id = self.tracker.active_run.info.run_id
        self.kept.save(self.id)
        if known is None:
            self.tracker.store_init_configuration(dict(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record what is new."""
        if new := self.kept.take_new(step, values):
            try:
                self.tracker.log(new, step=step)
                self.kept.save(self.id)
            except Exception:
                self.finish()  # MLflow starts no other run in this process before
                raise

    def finish(self) -> None:
        """End the run; the next run of this process has another store."""
        import mlflow

        self.tracker.finish()
        if self.has_own_store:
            mlflow.set_tracking_uri(None)


def mlflow() -> Tracker:
    """MLflow: at $MLFLOW_TRACKING_URI, else in the file store RUN/trackers/mlruns."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        import mlflow  # noqa: F401
    except ImportError as error:
        raise missing_library("mlflow", error) from error
    return MlflowRun()
