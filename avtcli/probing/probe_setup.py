"""The images of a probe on one data set, and the subsets of them that its heads are trained on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from avtcli.config.probe_config import ProbeConfig
from avtcli.errors import AvtError
from avtcli.features.evaluation_target import PreparedImages
from avtcli.features.feature_reader import Feature, ForwardedImages, LabelledImages
from avtcli.models.encoder import Encoder
from avtcli.probing.head import Head, HeadFigures
from avtcli.runtime.devices import Context
from avtcli.seeding import keyed_generator


@dataclass(frozen=True)
class Subset:
    """Training images to use: rows, (n,) int64, sampled with a seed."""

    rows: Tensor
    shots: int | None
    seed: int

    @property
    def label(self) -> str:
        """For the name of a task."""
        return " ".join([*([f"{self.shots} shots"] if self.shots else []), *([f"seed {self.seed}"] * (self.seed > 0))])


@dataclass(frozen=True, kw_only=True)
class HeadResult(HeadFigures):
    """The figures of one head on a layer.

    `shots` is the number of labelled images of each class, none where it was not set; `seed` is that of the head's weights,
    image order and subset of images.
    """

    dataset: str
    layer: str
    pool: str
    head: str
    train_images: int
    test_images: int
    shots: int | None
    seed: int


@dataclass(frozen=True)
class ProbeSetup:
    """Everything that a probe on one data set needs besides the encoders."""

    config: ProbeConfig
    head: Head
    prepared: PreparedImages
    train: LabelledImages
    test: LabelledImages
    wanted: list[Feature]
    subsets: list[Subset]
    classes: int
    context: Context

    def reader(self, encoder: Encoder, data: LabelledImages, wanted: Sequence[Feature]) -> ForwardedImages:
        """Features of the training or test images, computed by an encoder when they are read."""
        config, augment = self.config, self.prepared.augment if self.config.augments else None
        return ForwardedImages(encoder, data, wanted, augment=augment, samples=config.samples, seed=config.seed)

    def result(self, feature: Feature, subset: Subset, figures: HeadFigures) -> HeadResult:
        """The figures of a head with what it was trained on."""
        return HeadResult(
            dataset=self.prepared.dataset.name,
            layer=feature.layer,
            pool=feature.pool,
            head=self.config.head.name,
            train_images=len(subset.rows),
            test_images=len(self.test.labels),
            shots=subset.shots,
            seed=subset.seed,
            **asdict(figures),
        )


def subset_rows(
    labels: Tensor, *, shots: int | None = None, fraction: float | None = None, seed: int, names: Sequence[str] = ()
) -> Tensor:
    """The rows to train on, sorted: all, or a number or a share of each class; a smaller sample is part of a larger one.

    The classes' names are for messages.
    """
    rows = torch.arange(len(labels))
    if shots is not None or fraction is not None:
        order = torch.randperm(len(labels), generator=keyed_generator(seed, "shots"))
        shuffled = labels[order]
        groups = torch.split(order[shuffled.argsort(stable=True)], torch.bincount(shuffled).tolist())
        by_class = {label: group for label, group in enumerate(groups) if len(group)}
        scarce = min(by_class, key=lambda label: len(by_class[label]))
        if shots is not None and len(by_class[scarce]) < shots:
            most, name = len(by_class[scarce]), repr(names[scarce]) if scarce < len(names) else scarce
            raise AvtError(
                f"--shots {shots} asks for {shots} training images of each class, class {name} has {most}. Give at most {most}."
            )
        counts = {label: shots or max(1, round(len(group) * (fraction or 1))) for label, group in by_class.items()}
        rows = torch.cat([group[: counts[label]] for label, group in by_class.items()]).sort().values
    if len(rows) < 4:
        raise AvtError(f"{len(rows)} labelled images are too few to train a head: it needs 4. Give more --shots or --fraction.")
    return rows


def split_held_out(rows: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split training rows at random into those to fit on and those held out to choose on, each sorted.

    A tenth is held out, but 100 at least, or half of fewer than 200: among a few images chance would choose. Each class keeps
    an image to fit on, so nothing is held out of one image a class. The labels are those of all images.
    """
    order = rows[torch.randperm(len(rows), generator=keyed_generator(seed, "held out"))]
    count = max(round(len(order) / 10), min(100, len(order) // 2))
    fit, held = order[count:], order[:count]
    classes = labels.cpu()[held]
    back = torch.zeros(len(held), dtype=torch.bool)
    for label in set(classes.tolist()) - set(labels.cpu()[fit].tolist()):
        back[int((classes == label).nonzero()[0])] = True
    return torch.cat([fit, held[back]]).sort().values, held[~back].sort().values
