"""The projective family of AVT and AET: scaled, rotated and shifted corners."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size
from avtcli.errors import AvtError
from avtcli.geometry.distributions import CORNER_NAMES, TransformDistribution
from avtcli.geometry.geometric_family import geometric
from avtcli.geometry.homography import (
    coefficients_from_matrix,
    corner_turns,
    corners_of,
    in_from_out_from_corners,
    inverse,
    map_points,
    matrix_from_coefficients,
    unit_last_entry,
)

TURNED_NAMES = ("u0", "v0", "u1", "v1", "u2", "v2", "u3", "v3")
CHUNK = 8_192
"""Samples that are solved at once, so that intermediate results stay in the processor's cache."""


def move_corners(size: Size, *, shift: Tensor, scale: Tensor, rotation: Tensor) -> Tensor:
    """Transform the corners: scaled about (W/2 + 0.5, H/2 + 0.5), permuted by 90-degree rotations, each coordinate shifted.

    Args:
        size: (height, width).
        shift: (n, 4, 2), pixels.
        scale: (n,).
        rotation: (n,) int64 in 0..3: new[i] = old[(i + rotation) mod 4].

    Returns:
        (n, 4, 2), float64, pixels.
    """
    height, width = size
    centre = torch.tensor([width / 2 + 0.5, height / 2 + 0.5], dtype=torch.float64)
    from_centre = corners_of(size) - centre
    rotated = torch.stack([from_centre.roll(-k, 0) for k in range(4)], -1)  # (4, 2, 4)
    return rotated.gather(-1, rotation.expand(4, 2, -1)).mul_(scale).add_(centre[:, None]).movedim(-1, 0).add_(shift)


@dataclass(frozen=True, kw_only=True)
class ProjectiveDistribution(TransformDistribution):
    """Parameters are the eight coefficients of Pillow's PERSPECTIVE; the values are turned corners and offsets.

    Values, (n, 16), in pixels: u and v, the output's corner near which each corner of the image lies, and x and y, the offset
    from each corner of the output to the image's corner near it. Both halves weigh the same in a squared error, while the
    variance of coefficients and of displacements is nearly all that of the turns. Without turns x and y alone, (n, 8).

    Source: the release's cifar/dataset.py and imagenet/dataset.py, for what is sampled.
    """

    shift: float
    scale_low: float
    scale_high: float
    rotate: bool
    names: tuple[str, ...]
    coefficients = (0, 1, 2, 3, 4, 5, 6, 7)

    @property
    def units(self) -> tuple[str, ...]:
        """All are pixels."""
        return ("px",) * len(self.names)

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Sample coefficients (n, 8), float64."""
        scale = torch.rand(n, generator=generator, dtype=torch.float64)
        scale = self.scale_low + (self.scale_high - self.scale_low) * scale
        rotation = torch.randint(4 if self.rotate else 1, (n,), generator=generator)
        shift = torch.rand(n, 4, 2, generator=generator, dtype=torch.float64)
        # integer pixels in [-s, s], s = floor(side * shift), for each side
        most = torch.tensor([[int(size[1] * self.shift)], [int(size[0] * self.shift)]], dtype=torch.float64)
        out = torch.empty(n, 8, dtype=torch.float64)
        for first in range(0, n, CHUNK):
            part = slice(first, first + CHUNK)
            # each coordinate of each corner is a contiguous row
            pixels = shift[part].movedim(0, -1).contiguous().mul_(2 * most + 1).floor_().sub_(most)
            transformed = move_corners(size, shift=pixels.movedim(-1, 0), scale=scale[part], rotation=rotation[part])
            out[part] = coefficients_from_matrix(in_from_out_from_corners(transformed, size))
        return out

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """The matrices (n, 3, 3) of the coefficients."""
        return matrix_from_coefficients(parameters)

    def parameters_from_matrix(self, in_from_out: Tensor, size: Size) -> Tensor:
        """The coefficients of any homographies."""
        return coefficients_from_matrix(unit_last_entry(in_from_out))

    def values(self, parameters: Tensor, size: Size) -> Tensor:
        """The turned corners and the offsets."""
        matrix = matrix_from_coefficients(parameters)
        corners, (turns, _) = corners_of(size).to(matrix), corner_turns(matrix, size)
        offsets = _turned(map_points(inverse(matrix), corners), -turns) - corners
        turned = [_turned(corners.expand_as(offsets), turns)] if self.rotate else []
        return torch.cat([*turned, offsets], 1).flatten(1)

    def parameters_from_values(self, values: Tensor, size: Size) -> Tensor:
        """The coefficients with the turn that fits u and v best; its gradient is that before rounding, which has none."""
        corners = corners_of(size).to(values)
        if not self.rotate:
            return coefficients_from_matrix(in_from_out_from_corners(corners + values.reshape(-1, 4, 2), size))
        near, offsets = values.reshape(-1, 2, 4, 2).unbind(1)
        half = corners[2] / 2
        square, (x, y) = (near - half) / half, ((corners - half) / half).unbind(1)  # sides of 2, so that turns are rotations
        cos = (x * square[..., 0] + y * square[..., 1]).mean(1) / 2
        sin = (x * square[..., 1] - y * square[..., 0]).mean(1) / 2
        turns = (torch.atan2(sin, cos) / (math.pi / 2)).round().long()
        angle = turns.to(values) * (math.pi / 2)
        cos, sin = (angle.cos() + (cos - cos.detach()))[:, None], (angle.sin() + (sin - sin.detach()))[:, None]
        turned = torch.stack([x * cos - y * sin, x * sin + y * cos], 2) * half + half
        return coefficients_from_matrix(in_from_out_from_corners(turned + _turned(offsets, turns), size))


def _turned(corners: Tensor, turns: Tensor) -> Tensor:
    """Corners (n, 4, 2) in another order: new[i] = old[(i + turns) mod 4]."""
    order = (torch.arange(4, device=turns.device) + turns[:, None]) % 4
    return corners.gather(1, order[..., None].expand(-1, -1, 2))


@geometric
def projective(
    *, shift: float = 0.125, scale_low: float = 0.8, scale_high: float = 1.2, rotate: bool = True
) -> ProjectiveDistribution:
    """Homographies: corners scaled, rotated by multiples of 90 degrees and shifted; the values are turned corners and offsets.

    Args:
        shift: largest shift of a corner's coordinate, as a fraction of the side, below 0.25, floored to integer pixels.
        scale_low: smallest scale, above 0.
        scale_high: largest scale, at least the smallest.
        rotate: whether to rotate by 0, 90, 180 or 270 degrees.
    """
    if not 0 < scale_low <= scale_high:
        raise AvtError(f"transform.scale_low and scale_high need 0 < low <= high, found {scale_low} and {scale_high}.")
    if not 0 <= shift < 0.25:
        raise AvtError(f"transform.shift needs a fraction of the side from 0 to below 0.25, found {shift}.")
    names = (*TURNED_NAMES, *CORNER_NAMES) if rotate else CORNER_NAMES
    return ProjectiveDistribution(shift=shift, scale_low=scale_low, scale_high=scale_high, rotate=rotate, names=names)
