"""The projective family of AVT and AET: scaled, rotated and shaken corners."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size, TransformFamily
from avtcli.core.homography import (
    coefficients_from_matrix,
    corners_of,
    in_from_out_from_corners,
    matrix_from_coefficients,
)
from avtcli.core.keyed import keyed_generator
from avtcli.core.warp import GREY, warp
from avtcli.errors import AvtError


def move_corners(size: Size, *, shift: Tensor, scale: Tensor, rotation: Tensor) -> Tensor:
    """Where the corners go: scaled about (W/2 + 0.5, H/2 + 0.5), their order turned, each coordinate shifted.

    Args:
        size: (height, width).
        shift: (n, 4, 2), pixels.
        scale: (n,).
        rotation: (n,) int64 in 0..3, quarter turns: new[i] = old[(i + rotation) mod 4].

    Returns:
        (n, 4, 2), float64, pixels.
    """
    height, width = size
    centre = torch.tensor([width / 2 + 0.5, height / 2 + 0.5], dtype=torch.float64)
    scaled = centre + (corners_of(size) - centre) * scale.double()[:, None, None]
    turn = (torch.arange(4) + rotation[:, None]) % 4
    return scaled.gather(1, turn[:, :, None].expand(-1, -1, 2)) + shift


@dataclass(frozen=True)
class Projective(TransformFamily):
    """Parameters are the eight coefficients of Pillow's PERSPECTIVE, and so is the target, normalised.

    Source: the release's cifar/dataset.py and imagenet/dataset.py.
    """

    shift: float
    scale_low: float
    scale_high: float
    rotate: bool
    truncate: bool
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    kind = "geometric"
    names = ("a", "b", "c", "d", "e", "f", "g", "h")
    units = ("", "", "px", "", "", "px", "1/px", "1/px")

    def draw(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Coefficients (n, 8), float64."""
        scale = torch.rand(n, generator=generator, dtype=torch.float64)
        scale = self.scale_low + (self.scale_high - self.scale_low) * scale
        rotation = torch.randint(4 if self.rotate else 1, (n,), generator=generator)
        shift = torch.rand(n, 4, 2, generator=generator, dtype=torch.float64)
        # whole pixels in [-s, s], s = floor(side * shift), each side by its own length
        most = torch.tensor([int(size[1] * self.shift), int(size[0] * self.shift)], dtype=torch.float64)
        shift = (shift * (2 * most + 1)).floor() - most
        moved = move_corners(size, shift=shift, scale=scale, rotation=rotation)
        return coefficients_from_matrix(in_from_out_from_corners(moved, size))

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Warp a batch; outside the image it is grey, with a hard edge."""
        return warp(images, matrix_from_coefficients(parameters), fill=GREY, truncate=self.truncate)

    def statistics(self, size: Size) -> tuple[Tensor, Tensor]:
        """The stated figures, or those of 200 000 draws with a seed of their own."""
        if self.mean is not None and self.std is not None:
            return torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.std, dtype=torch.float64)
        return _sampled_statistics(self, size)

    def target(self, parameters: Tensor, size: Size) -> Tensor:
        """(coefficients - mean) / std."""
        mean, std = (s.to(parameters) for s in self.statistics(size))
        return (parameters - mean) / std

    def decode(self, target: Tensor, size: Size) -> Tensor:
        """Target * std + mean."""
        mean, std = (s.to(target) for s in self.statistics(size))
        return target * std + mean

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """The matrices (n, 3, 3) of the coefficients."""
        return matrix_from_coefficients(parameters)


@lru_cache
def _sampled_statistics(family: Projective, size: Size) -> tuple[Tensor, Tensor]:
    sample = family.draw(200_000, size, keyed_generator("projective statistics"))
    return sample.mean(0), sample.std(0)


def projective(
    *,
    shift: float = 0.125,
    scale_low: float = 0.8,
    scale_high: float = 1.2,
    rotate: bool = True,
    truncate: bool = True,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> TransformFamily:
    """Homographies: corners scaled, turned by quarters and shifted by whole pixels; the target is eight coefficients.

    Args:
        shift: the largest shift of a corner's coordinate, as a share of the side (floored to whole pixels).
        scale_low: the smallest scale.
        scale_high: the largest scale.
        rotate: whether the corners are turned by 0 to 3 quarters.
        truncate: round the moved image down to whole grey levels, as Pillow and so the release do.
        mean: of the target, eight numbers; computed for the image size where left out.
        std: of the target, eight numbers; computed for the image size where left out.
    """
    for name, value in (("mean", mean), ("std", std)):
        if value is not None and len(value) != 8:
            raise AvtError(f"transform.{name} needs 8 numbers, one a coefficient, found {len(value)}.")
    if (mean is None) != (std is None):
        raise AvtError("transform.mean and transform.std go together: give both or neither.")
    if std is not None and min(std) <= 0:
        raise AvtError(f"transform.std needs numbers above 0, found {min(std)}.")
    if not 0 < scale_low <= scale_high:
        raise AvtError(f"transform.scale_low and scale_high need 0 < low <= high, found {scale_low} and {scale_high}.")
    if not 0 <= shift < 0.25:
        raise AvtError(f"transform.shift needs a share of the side from 0 to below 0.25, found {shift}.")
    return Projective(shift, scale_low, scale_high, rotate, truncate, mean, std)
