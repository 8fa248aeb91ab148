"""The length of a run: its epochs and steps, the time that they take at a measured speed, and what would end in an hour."""

from dataclasses import dataclass, replace
from math import ceil
from typing import Final

from avtcli.config.pretrain_config import PretrainConfig
from avtcli.events import Notice, OnEvent

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
EVALUATED_PER_PAIR: Final = 5  # images of an evaluation, with all it does, take about as long as one training pair


@dataclass(frozen=True)
class RunLength:
    """The length of a run.

    Attributes:
        images: pairs of an epoch, one of each image.
        steps_per_epoch: batches of an epoch.
        epochs: of the schedule.
        max_steps: steps after which the run stops early, or none.
        evaluation: work of the run's evaluations, as a number of training pairs.
    """

    images: int
    steps_per_epoch: int
    epochs: int
    max_steps: int | None = None
    evaluation: float = 0.0

    @classmethod
    def of(cls, config: PretrainConfig, images: int, steps_per_epoch: int, *, monitored: int) -> "RunLength":
        """Return the length of a run on a number of images that is evaluated on `monitored` ones."""
        plain = cls(images, steps_per_epoch, config.total_epochs, config.max_steps)
        count = 1 + ceil(plain.steps / steps_per_epoch / config.eval_every) if config.eval_every else 0
        passes = min(1000, images) + 2.5 * monitored  # codes of others and of half of these, and pairs of all of these
        return replace(plain, evaluation=count * passes / EVALUATED_PER_PAIR)

    @property
    def steps(self) -> int:
        """Steps of the run."""
        all_epochs = self.steps_per_epoch * self.epochs
        return min(all_epochs, self.max_steps or all_epochs)

    @property
    def pairs_per_step(self) -> float:
        """Mean over an epoch, whose last batch may be smaller."""
        return self.images / self.steps_per_epoch

    def seconds(self, speed: float, *, after: int = 0) -> float:
        """Return the time that the run takes after the first `after` steps, at a speed of steps in pairs per second."""
        left = max(0, self.steps - after)
        return left * (self.pairs_per_step + self.evaluation / self.steps) / speed

    def shorter(self, speed: float) -> str | None:
        """Return options for a run of about an hour at a speed in pairs per second; none where this one takes no longer."""
        seconds = self.seconds(speed)
        if seconds <= HOUR:
            return None
        epochs = self.steps / self.steps_per_epoch * HOUR / seconds  # evaluations take their share of it
        if epochs < 1:
            return f"--epochs 1 --limit-train {max(2, epochs * self.images):.0f}"
        return f"--epochs {int(epochs)}"

    def advice(self, speed: float) -> str:
        """Return a line about a run of more than an hour: whether it takes more than a day, and what would take an hour."""
        shorter, day = self.shorter(speed), "more than a day; " if self.seconds(speed) > DAY else ""
        return f"{day}`{shorter}` takes about an hour here" if shorter else ""


def describe_seconds(seconds: float) -> str:
    """Write a duration, as in `12 min`."""
    for unit, size in (("days", DAY), ("h", HOUR), ("min", 60.0)):
        count = seconds / size
        if count >= 1.5:
            return f"{count:.{0 if count >= 10 else 1}f} {unit}"
    return f"{seconds:.0f} s"


def within_budget(config: PretrainConfig, images: int, *, on_event: OnEvent) -> PretrainConfig:
    """Return the settings with fewer epochs, and report it, where those of the schedule would exceed `max_pairs`."""
    if config.max_pairs is None or config.epochs is not None:
        return config
    epochs = max(1, config.max_pairs // images)
    if epochs >= config.schedule.epochs:
        return config
    kept = f"{epochs} of {config.schedule.epochs} epochs, for a budget of {config.max_pairs:,} pairs"
    on_event(Notice(f"recipe {config.recipe}: {kept}; `--epochs N` overrides it"))
    return config.model_copy(update={"epochs": epochs})
