"""TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avtcli.contracts import Tracker
from avtplugins.trackers._continuation import missing_library


class TensorBoardEvents(Tracker):
    """Event files; TensorBoard drops the steps after which a resumed run goes on."""

    def start(self, run_dir: Path, config: Mapping[str, Any], step: int) -> None:
        """Begin an event file, with the settings as hyperparameters."""
        from accelerate.tracking import TensorBoardTracker
        from torch.utils.tensorboard.summary import hparams

        self.tracker = TensorBoardTracker("tensorboard", run_dir / "trackers", purge_step=step + 1)
        self.tracker.start()
        plain = {name: str(value) if isinstance(value, list) else value for name, value in config.items()}
        for summary in hparams(plain, {}):  # type: ignore[no-untyped-call]
            self.tracker.writer.file_writer.add_summary(summary)  # by add_hparams they would be another run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars."""
        self.tracker.log(dict(values), step=step)

    def finish(self) -> None:
        """Close the event file."""
        self.tracker.finish()


def tensorboard() -> Tracker:
    """TensorBoard: event files in RUN/trackers/tensorboard. `tensorboard --logdir runs` shows them."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise missing_library("tensorboard", error) from error
    return TensorBoardEvents()
