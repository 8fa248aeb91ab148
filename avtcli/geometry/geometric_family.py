"""Geometric families: a distribution of warps with the options that all of them share."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size, TransformFamily
from avtcli.errors import AvtError
from avtcli.geometry.distributions import TargetKind, TransformDistribution, parameters_from_raw, raw_target, target_names
from avtcli.geometry.warp import GREY, Outside, warp
from avtcli.seeding import keyed_generator

Fill = Literal["grey", "constant", "border", "reflect"]
SAMPLES = 100_000


@dataclass(frozen=True, kw_only=True)
class WarpOptions:
    """Options that all geometric families share.

    Attributes:
        target: what the decoder predicts: the family's own values, the coefficients of Pillow's PERSPECTIVE that vary, or the
            displacements of the four corners.
        fill: what lies outside the image: grey level 128, a constant, the nearest pixel, or the reflected image.
        fill_value: the constant, from 0 (black) to 1 (white).
        truncate: round the transformed image down to integer grey levels, as Pillow does.
        mean: of the target, one number per component; estimated for the image size where left out.
        std: of the target, one number per component; estimated for the image size where left out.
    """

    target: TargetKind = "parameters"
    fill: Fill = "grey"
    fill_value: float = 0.0
    truncate: bool = True
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def outside(self) -> Outside:
        """The `fill` argument of `warp`."""
        if self.fill == "border" or self.fill == "reflect":
            return self.fill
        return GREY if self.fill == "grey" else self.fill_value

    def check(self, names: tuple[str, ...]) -> None:
        """Check the options for a target whose components have these names.

        Raises:
            AvtError: for statistics of another length, a deviation of 0 or less, or a fill outside [0, 1].
        """
        for option, value in (("mean", self.mean), ("std", self.std)):
            if value is not None and len(value) != len(names):
                raise AvtError(f"transform.{option} needs {len(names)} numbers ({', '.join(names)}), found {len(value)}.")
        if (self.mean is None) != (self.std is None):
            raise AvtError("transform.mean and transform.std go together: give both or neither.")
        if self.std is not None and min(self.std) <= 0:
            raise AvtError(f"transform.std needs numbers above 0, found {min(self.std)}.")
        if not 0 <= self.fill_value <= 1:
            raise AvtError(f"transform.fill_value needs a value from 0 (black) to 1 (white), found {self.fill_value}.")


@lru_cache
def estimate_statistics(distribution: TransformDistribution, kind: TargetKind, size: Size) -> tuple[Tensor, Tensor]:
    """Estimate mean and standard deviation of a target, (dof,) each, from 100 000 samples with a fixed seed.

    A component that the distribution keeps constant gets the deviation 1, so that it can be divided by.
    """
    sample = raw_target(distribution, kind, distribution.sample(SAMPLES, size, keyed_generator("statistics")), size)
    std = sample.std(0)
    return sample.mean(0), torch.where(std > 1e-9 * (1 + sample.mean(0).abs()), std, 1.0)


class GeometricFamily(TransformFamily):
    """A distribution of warps with the shared options. `decode` is differentiable and the exact inverse of `target`.

    Raises:
        AvtError: for options that do not fit the distribution.
    """

    def __init__(self, distribution: TransformDistribution, options: WarpOptions) -> None:
        self.distribution, self.options = distribution, options
        self.kind, self.n_classes = "geometric", distribution.n_classes
        self.names, self.units = target_names(distribution, options.target)
        options.check(self.names)

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Sample from the distribution."""
        return self.distribution.sample(n, size, generator)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Warp a batch."""
        matrix = self.distribution.in_from_out(parameters, (images.shape[-2], images.shape[-1]))
        return warp(images, matrix, fill=self.options.outside, truncate=self.options.truncate)

    def statistics(self, size: Size) -> tuple[Tensor, Tensor]:
        """Return the given statistics, or those of the distribution for images of the size."""
        if self.options.mean is not None and self.options.std is not None:
            return torch.tensor(self.options.mean, dtype=torch.float64), torch.tensor(self.options.std, dtype=torch.float64)
        return estimate_statistics(self.distribution, self.options.target, size)

    def target(self, parameters: Tensor, size: Size) -> Tensor:
        """(raw target - mean) / std."""
        mean, std = (s.to(parameters) for s in self.statistics(size))
        return (raw_target(self.distribution, self.options.target, parameters, size) - mean) / std

    def decode(self, target: Tensor, size: Size) -> Tensor:
        """The parameters whose raw target is target * std + mean."""
        mean, std = (s.to(target) for s in self.statistics(size))
        return parameters_from_raw(self.distribution, self.options.target, target * std + mean, size)

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """The distribution's matrices, (n, 3, 3)."""
        return self.distribution.in_from_out(parameters, size)

    def classes(self, parameters: Tensor) -> Tensor:
        """The distribution's classes, (n,) int64."""
        return self.distribution.classes(parameters)


def geometric(build: Callable[..., TransformDistribution]) -> Callable[..., GeometricFamily]:
    """Turn a function that builds a distribution into a plugin: a function of its options and the shared ones.

    The plugin's signature, annotations and docstring list both.
    """
    shared = inspect.signature(WarpOptions).parameters
    parameters = [*inspect.signature(build).parameters.values(), *shared.values()]

    @wraps(build)
    def plugin(**options: Any) -> GeometricFamily:
        common = {name: options.pop(name) for name in shared if name in options}
        return GeometricFamily(build(**options), WarpOptions(**common))

    own, common_help = inspect.getdoc(build) or "", (inspect.getdoc(WarpOptions) or "").partition("Attributes:\n")[2]
    plugin.__doc__ = own + ("\n" if "\nArgs:" in own else "\n\nArgs:\n") + common_help
    plugin.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": GeometricFamily}
    plugin.__dict__["__signature__"] = inspect.Signature(parameters, return_annotation=GeometricFamily)
    return plugin
