"""Rotations by multiples of 90 degrees, as in RotNet."""

from dataclasses import dataclass
from math import pi

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size
from avtcli.geometry.distributions import TransformDistribution
from avtcli.geometry.geometric_family import geometric
from avtcli.geometry.homography import matrix_from_coefficients


def cos_sin_of_quarters(quarters: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of an angle in units of 90 degrees: exact for integers, differentiable between them."""
    nearest = quarters.detach().round()
    rest, remainder = (quarters - nearest) * (pi / 2), torch.remainder(nearest, 4)
    cos = (remainder == 0).to(quarters) - (remainder == 2).to(quarters)
    sin = (remainder == 1).to(quarters) - (remainder == 3).to(quarters)
    return cos * rest.cos() - sin * rest.sin(), sin * rest.cos() + cos * rest.sin()


@dataclass(frozen=True)
class RotationDistribution(TransformDistribution):
    """Parameters are counterclockwise 90-degree rotations, (n, 1), as `torch.rot90` counts them.

    The image rotates about its centre (W/2, H/2) within its canvas: one that is not square is stretched to fit, so that no
    fill reveals the rotation. A decoded rotation may be fractional; `classes` rounds it.

    Source: Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018.
    """

    names = ("cos", "sin")
    coefficients = (0, 1, 2, 3, 4, 5)
    n_classes = 4

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Sample 0 to 3 with equal probability: (n, 1), float64."""
        return torch.randint(4, (n, 1), generator=generator).double()

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """The rotation of the square [-1, 1] x [-1, 1], in pixels; y points down, so that it looks counterclockwise."""
        cos, sin = cos_sin_of_quarters(parameters[:, 0])
        height, width = size
        a, b, d, e = cos, -sin * (width / height), sin * (height / width), cos
        c = width / 2 - a * (width / 2) - b * (height / 2)
        f = height / 2 - d * (width / 2) - e * (height / 2)
        zero = torch.zeros_like(a)
        return matrix_from_coefficients(torch.stack([a, b, c, d, e, f, zero, zero], 1))

    def parameters_from_matrix(self, in_from_out: Tensor, size: Size) -> Tensor:
        """The rotation nearest to that of an affine map, in [0, 4)."""
        height, width = size
        sin = in_from_out[:, 1, 0] * (width / height) - in_from_out[:, 0, 1] * (height / width)
        return _quarters(in_from_out[:, 0, 0] + in_from_out[:, 1, 1], sin)

    def values(self, parameters: Tensor, size: Size) -> Tensor:
        """Cosine and sine of the rotation."""
        return torch.stack(cos_sin_of_quarters(parameters[:, 0]), 1)

    def parameters_from_values(self, values: Tensor, size: Size) -> Tensor:
        """The rotation, in [0, 4)."""
        return _quarters(values[:, 0], values[:, 1])

    def classes(self, parameters: Tensor) -> Tensor:
        """The nearest integer rotation, 0 to 3."""
        return parameters[:, 0].round().long() % 4


def _quarters(cos: Tensor, sin: Tensor) -> Tensor:
    return torch.remainder(torch.atan2(sin, cos) / (pi / 2), 4)[:, None]


@geometric
def rotation() -> RotationDistribution:
    """Exact counterclockwise rotations by 0, 90, 180 or 270 degrees; four classes, or two values (cos, sin)."""
    return RotationDistribution()
