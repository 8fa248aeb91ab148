"""The projective family of AVT and AET: scaled, rotated and shaken corners."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size
from avtcli.errors import AvtError
from avtcli.geometry.distributions import TransformDistribution
from avtcli.geometry.geometric_family import Fill, GeometricFamily, Geometry, check_geometry
from avtcli.geometry.homography import (
    coefficients_from_matrix,
    corners_of,
    in_from_out_from_corners,
    matrix_from_coefficients,
    unit_last_entry,
)

CHUNK = 8_192
"""Draws that are solved at once."""


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
    from_centre = corners_of(size) - centre
    turned = torch.stack([from_centre.roll(-k, 0) for k in range(4)], -1)  # (4, 2, 4)
    return turned.gather(-1, rotation.expand(4, 2, -1)).mul_(scale).add_(centre[:, None]).movedim(-1, 0).add_(shift)


@dataclass(frozen=True, kw_only=True)
class ProjectiveDistribution(TransformDistribution):
    """Parameters are the eight coefficients of Pillow's PERSPECTIVE.

    Weights: the release's cifar/dataset.py and imagenet/dataset.py.
    """

    shift: float
    scale_low: float
    scale_high: float
    rotate: bool
    coefficients = (0, 1, 2, 3, 4, 5, 6, 7)
    algebra = (0, 1, 2, 3, 4, 5, 6, 7)
    is_affine = False

    @property
    def max_turn_deg(self) -> float:
        """Half a turn, or 30 degrees (27 are the most at the extremes) where nothing is turned and no quadrangle can fold.

        A quadrangle stays convex while no corner can cross the line between its neighbours: shift below scale / 4.
        """
        return 30.0 if not self.rotate and self.shift < self.scale_low / 4 else 180.0

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Coefficients (n, 8), float64."""
        scale = torch.rand(n, generator=generator, dtype=torch.float64)
        scale = self.scale_low + (self.scale_high - self.scale_low) * scale
        rotation = torch.randint(4 if self.rotate else 1, (n,), generator=generator)
        shift = torch.rand(n, 4, 2, generator=generator, dtype=torch.float64)
        # whole pixels in [-s, s], s = floor(side * shift), each side by its own length
        most = torch.tensor([[int(size[1] * self.shift)], [int(size[0] * self.shift)]], dtype=torch.float64)
        out = torch.empty(n, 8, dtype=torch.float64)
        for first in range(0, n, CHUNK):  # what a chunk needs stays in the cache
            part = slice(first, first + CHUNK)
            # each coordinate of each corner a row that lies whole in memory
            whole = shift[part].movedim(0, -1).contiguous().mul_(2 * most + 1).floor_().sub_(most)
            transformed = move_corners(size, shift=whole.movedim(-1, 0), scale=scale[part], rotation=rotation[part])
            out[part] = coefficients_from_matrix(in_from_out_from_corners(transformed, size))
        return out

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """The matrices (n, 3, 3) of the coefficients."""
        return matrix_from_coefficients(parameters)

    def parameters_from_matrix(self, in_from_out: Tensor, size: Size) -> Tensor:
        """The coefficients of any homographies."""
        return coefficients_from_matrix(unit_last_entry(in_from_out))


def projective(
    *,
    shift: float = 0.125,
    scale_low: float = 0.8,
    scale_high: float = 1.2,
    rotate: bool = True,
    truncate: bool = True,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    target: Literal["coefficients", "corners", "sl3"] = "coefficients",
    fill: Fill = "grey",
    fill_value: float = 0.0,
) -> GeometricFamily:
    """Homographies: corners scaled, turned by quarters and shifted by whole pixels; the target is eight coefficients.

    Args:
        shift: the largest shift of a corner's coordinate, as a share of the side (floored to whole pixels).
        scale_low: the smallest scale.
        scale_high: the largest scale.
        rotate: whether the corners are turned by 0 to 3 quarters.
        truncate: round the transformed image down to whole grey levels, as Pillow and so the release do.
        mean: of the target, one number each; computed for the image size where left out.
        std: of the target, one number each; computed for the image size where left out.
        target: Pillow's coefficients, the displacements of the four corners, or (without rotate) the Lie algebra.
        fill: what lies outside the image: grey level 128 as in the release, a constant, the border's pixel, its reflection.
        fill_value: the constant, from 0 (black) to 1 (white).
    """
    if not 0 < scale_low <= scale_high:
        raise AvtError(f"transform.scale_low and scale_high need 0 < low <= high, found {scale_low} and {scale_high}.")
    if not 0 <= shift < 0.25:
        raise AvtError(f"transform.shift needs a share of the side from 0 to below 0.25, found {shift}.")
    distribution = ProjectiveDistribution(shift=shift, scale_low=scale_low, scale_high=scale_high, rotate=rotate)
    geometry = Geometry(target=target, fill=fill, fill_value=fill_value, truncate=truncate, mean=mean, std=std)
    check_geometry(distribution, geometry, turn_advice="transform.rotate=false and a shift below scale_low / 4")
    return GeometricFamily(distribution, geometry)
