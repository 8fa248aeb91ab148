"""Geometric families: a distribution of warps, and the options that all of them share."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size, TransformFamily
from avtcli.errors import AvtError
from avtcli.geometry.distributions import TargetKind, TransformDistribution, parameters_from_raw, raw_target, target_names
from avtcli.geometry.warp import GREY, Outside, warp
from avtcli.seeding import keyed_generator

Fill = Literal["grey", "constant", "border", "reflect"]
"""What lies outside the image: the release's grey 128, one value, its nearest pixel, or its mirror image."""

SAMPLES = 100_000
MAX_TURN_DEG = 135.0
"""The largest turn of which a logarithm is taken: beyond it, small changes come near to where it jumps."""


@lru_cache
def estimate_statistics(distribution: TransformDistribution, kind: TargetKind, size: Size) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a target under its distribution, (dof,) each, from 100 000 draws with a seed of their own.

    A number that the distribution keeps constant has the deviation 1, so that it can be divided by.
    """
    sample = raw_target(distribution, kind, distribution.sample(SAMPLES, size, keyed_generator("statistics")), size)
    std = sample.std(0)
    return sample.mean(0), torch.where(std > 1e-9 * (1 + sample.mean(0).abs()), std, 1.0)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The options that all geometric families share.

    Attributes:
        target: what the decoder is to predict.
        fill: what lies outside the image.
        fill_value: for `constant`, in [0, 1].
        truncate: round the transformed image down to whole grey levels.
        mean: of the target; computed for the image size where none.
        std: of the target; computed for the image size where none.
    """

    target: TargetKind
    fill: Fill
    fill_value: float
    truncate: bool
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @property
    def outside(self) -> Outside:
        """What `warp` takes as its fill."""
        if self.fill == "border" or self.fill == "reflect":
            return self.fill
        return GREY if self.fill == "grey" else self.fill_value


def check_geometry(distribution: TransformDistribution, geometry: Geometry, *, turn_advice: str = "") -> None:
    """Check the shared options against a distribution.

    Args:
        distribution: what they are for.
        geometry: the options.
        turn_advice: the option that makes the distribution turn less.

    Raises:
        AvtError: for statistics of another length, a fill outside [0, 1], or a logarithm of half turns.
    """
    names, _ = target_names(distribution, geometry.target)
    mean, std = geometry.mean, geometry.std
    for name, value in (("mean", mean), ("std", std)):
        if value is not None and len(value) != len(names):
            raise AvtError(f"transform.{name} needs {len(names)} numbers ({', '.join(names)}), found {len(value)}.")
    if (mean is None) != (std is None):
        raise AvtError("transform.mean and transform.std go together: give both or neither.")
    if std is not None and min(std) <= 0:
        raise AvtError(f"transform.std needs numbers above 0, found {min(std)}.")
    if not 0 <= geometry.fill_value <= 1:
        raise AvtError(f"transform.fill_value needs a value from 0 (black) to 1 (white), found {geometry.fill_value}.")
    if geometry.target == "sl3" and distribution.max_turn_deg > MAX_TURN_DEG:
        raise AvtError(
            f"transform.target=sl3 has no unique logarithm near half a turn: at most {MAX_TURN_DEG:g} degrees, found "
            f"{distribution.max_turn_deg:g}. Choose transform.target=corners, or {turn_advice}."
        )


class GeometricFamily(TransformFamily):
    """A distribution of warps with the shared options. `decode` is exact for what `target` gives, and differentiable.

    Args:
        distribution: what is drawn.
        geometry: the shared options, checked.
    """

    def __init__(self, distribution: TransformDistribution, geometry: Geometry) -> None:
        self.distribution = distribution
        self.geometry = geometry
        self.kind = "geometric"
        self.names, self.units = target_names(distribution, geometry.target)
        self.n_classes = distribution.n_classes

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """As the distribution."""
        return self.distribution.sample(n, size, generator)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Warp a batch; outside the image lies what the options say."""
        matrix = self.distribution.in_from_out(parameters, (images.shape[-2], images.shape[-1]))
        return warp(images, matrix, fill=self.geometry.outside, truncate=self.geometry.truncate)

    def statistics(self, size: Size) -> tuple[Tensor, Tensor]:
        """The stated figures, or those of the distribution for images of the size."""
        if self.geometry.mean is not None and self.geometry.std is not None:
            return torch.tensor(self.geometry.mean, dtype=torch.float64), torch.tensor(self.geometry.std, dtype=torch.float64)
        return estimate_statistics(self.distribution, self.geometry.target, size)

    def target(self, parameters: Tensor, size: Size) -> Tensor:
        """(raw target - mean) / std."""
        mean, std = (s.to(parameters) for s in self.statistics(size))
        return (raw_target(self.distribution, self.geometry.target, parameters, size) - mean) / std

    def decode(self, target: Tensor, size: Size) -> Tensor:
        """The parameters whose raw target is target * std + mean."""
        mean, std = (s.to(target) for s in self.statistics(size))
        return parameters_from_raw(self.distribution, self.geometry.target, target * std + mean, size)

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """As the distribution."""
        return self.distribution.in_from_out(parameters, size)

    def classes(self, parameters: Tensor) -> Tensor:
        """As the distribution."""
        return self.distribution.classes(parameters)
