"""What a probe on one data set is made of, and which images its heads learn from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avtcli.config.probe_config import ProbeConfig
from avtcli.data.images import Images
from avtcli.errors import AvtError
from avtcli.events import OnEvent
from avtcli.features.evaluation_target import PreparedImages
from avtcli.features.feature_reader import Feature, ForwardedImages
from avtcli.models.encoder import Encoder
from avtcli.seeding import keyed_generator


@dataclass(frozen=True)
class Subset:
    """Which training images the heads learn from: rows, (n,) int64, drawn by a seed."""

    rows: Tensor
    shots: int | None
    seed: int

    @property
    def words(self) -> str:
        """For the name of a task."""
        return " ".join([*([f"{self.shots} shots"] if self.shots else []), *([f"seed {self.seed}"] * (self.seed > 0))])


@dataclass(frozen=True)
class Figures:
    """What one head gives, in percent.

    Attributes:
        top1: on the test split.
        top5: likewise.
        val_top1: on the held-out part of train, by the head that was trained to choose; none where nothing was chosen.
        chosen: what it chose, by name.
        top1_best_test_epoch: the best over the epochs of a schedule on test; none without one, where test is looked at once.
    """

    top1: float
    top5: float
    val_top1: float | None
    chosen: dict[str, float]
    top1_best_test_epoch: float | None = None


Found = tuple[Feature, Subset, Figures]
"""A head's figures, its feature and its subset."""


@dataclass(frozen=True)
class ProbeSetup:
    """Everything a probe on one data set is made of beside the encoders."""

    config: ProbeConfig
    prepared: PreparedImages
    images: dict[str, Images]
    labels: dict[str, Tensor]
    wanted: list[Feature]
    subsets: list[Subset]
    device: torch.device
    classes: int
    on_event: OnEvent

    def forwarded(self, encoder: Encoder, part: str, wanted: Sequence[Feature]) -> ForwardedImages:
        """The features of the train or test images, computed by an encoder when they are needed."""
        return ForwardedImages(
            encoder,
            self.images[part],
            self.labels[part],
            wanted,
            part=part,
            augment=self.prepared.augment if self.config.augments else None,
            size=self.prepared.size,
            samples=self.config.samples,
            seed=self.config.seed,
        )


def subsets(config: ProbeConfig, labels: Tensor) -> Iterator[Subset]:
    """The subsets of training images that a probe asks for, by the number of shots and the seed.

    Raises:
        AvtError: if there are too few images.
    """
    for shots in config.shots or (None,):
        for seed in range(config.seed, config.seed + config.seeds):
            yield Subset(subset_rows(labels.cpu(), shots=shots, fraction=config.fraction, seed=seed), shots, seed)


def subset_rows(labels: Tensor, *, shots: int | None = None, fraction: float | None = None, seed: int) -> Tensor:
    """The rows to train on, sorted: all, or a subset by the seed of so many or such a share a class, the fewer among the more.

    Raises:
        AvtError: if a class has too few images, or there are too few in all.
    """
    rows = torch.arange(len(labels))
    if shots is not None or fraction is not None:
        order = torch.randperm(len(labels), generator=keyed_generator(seed, "shots"))
        shuffled = labels[order]
        groups = torch.split(order[shuffled.argsort(stable=True)], torch.bincount(shuffled).tolist())
        by_class = {label: mine for label, mine in enumerate(groups) if len(mine)}
        scarce = min(by_class, key=lambda label: len(by_class[label]))
        if shots is not None and len(by_class[scarce]) < shots:
            raise AvtError(
                f"--shots {shots} asks for {shots} training images of each class, class {scarce} has {len(by_class[scarce])}."
            )
        counts = {label: shots or max(1, round(len(mine) * (fraction or 1))) for label, mine in by_class.items()}
        rows = torch.cat([mine[: counts[label]] for label, mine in by_class.items()]).sort().values
    if len(rows) < 4:
        raise AvtError(
            f"{len(rows)} labelled images are too few to train a head on: 4 is the least. Give more --shots or --fraction."
        )
    return rows


def split_held_out(rows: Tensor, labels: Tensor, share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Part the training rows by a subset: those to fit on, and those held out, sorted.

    A class keeps an image to fit on, so that of one image a class nothing is held out.

    Args:
        rows: to part, (n,) int64.
        labels: of all images, (N,) int64.
        share: of the rows to hold out.
        seed: of the subset.
    """
    order = rows[torch.randperm(len(rows), generator=keyed_generator(seed, "held out"))]
    count = min(max(1, round(len(order) * share)), len(order) - 2)
    fit, held = order[count:], order[:count]
    classes = labels.cpu()[held]
    bare = set(classes.tolist()) - set(labels.cpu()[fit].tolist())
    back = torch.zeros(len(held), dtype=torch.bool)
    for label in bare:
        back[int((classes == label).nonzero()[0])] = True
    return torch.cat([fit, held[back]]).sort().values, held[~back].sort().values
