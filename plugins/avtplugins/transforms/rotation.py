"""Quarter turns, as RotNet draws them."""

from dataclasses import dataclass
from math import pi
from typing import Literal

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size
from avtcli.geometry.distributions import TransformDistribution
from avtcli.geometry.geometric_family import Fill, GeometricFamily, Geometry, check_geometry
from avtcli.geometry.homography import matrix_from_coefficients


def cos_sin_of_quarters(quarters: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of an angle in quarter turns, exact for whole ones and differentiable between them."""
    whole = quarters.detach().round()
    rest = (quarters - whole) * (pi / 2)
    number = torch.remainder(whole, 4)
    cos = (number == 0).to(quarters) - (number == 2).to(quarters)
    sin = (number == 1).to(quarters) - (number == 3).to(quarters)
    return cos * rest.cos() - sin * rest.sin(), sin * rest.cos() + cos * rest.sin()


@dataclass(frozen=True)
class RotationDistribution(TransformDistribution):
    """Parameters are the number of quarter turns counterclockwise, (n, 1), as `torch.rot90` counts them.

    The image turns about its centre (W/2, H/2) and its canvas stays: one that is not square is stretched to fit, so that no
    fill betrays the turn. A decoded turn may lie between quarters; `classes` takes the nearest.

    Weights: Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018.
    """

    names = ("cos", "sin")
    units = ("", "")
    coefficients = (0, 1, 2, 3, 4, 5)
    algebra = (0, 1, 2, 3, 4, 5)
    is_affine = True
    max_turn_deg = 180.0
    n_classes = 4

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """0 to 3 quarter turns, each as likely: (n, 1), float64."""
        return torch.randint(4, (n, 1), generator=generator).double()

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """The turn of the square [-1, 1] x [-1, 1], in pixels: y points down, so that it is counterclockwise to the eye."""
        cos, sin = cos_sin_of_quarters(parameters[:, 0])
        height, width = size
        a, b, d, e = cos, -sin * (width / height), sin * (height / width), cos
        c = width / 2 - a * (width / 2) - b * (height / 2)
        f = height / 2 - d * (width / 2) - e * (height / 2)
        zero = torch.zeros_like(a)
        return matrix_from_coefficients(torch.stack([a, b, c, d, e, f, zero, zero], 1))

    def parameters_from_matrix(self, in_from_out: Tensor, size: Size) -> Tensor:
        """The turn nearest to that of an affine map, in [0, 4)."""
        height, width = size
        sin = in_from_out[:, 1, 0] * (width / height) - in_from_out[:, 0, 1] * (height / width)
        return _quarters(in_from_out[:, 0, 0] + in_from_out[:, 1, 1], sin)

    def values(self, parameters: Tensor, size: Size) -> Tensor:
        """Cosine and sine of the turn."""
        return torch.stack(cos_sin_of_quarters(parameters[:, 0]), 1)

    def parameters_from_values(self, numbers: Tensor, size: Size) -> Tensor:
        """The turn, in [0, 4)."""
        return _quarters(numbers[:, 0], numbers[:, 1])

    def classes(self, parameters: Tensor) -> Tensor:
        """The nearest whole number of quarter turns, 0 to 3."""
        return parameters[:, 0].round().long() % 4


def _quarters(cos: Tensor, sin: Tensor) -> Tensor:
    return torch.remainder(torch.atan2(sin, cos) / (pi / 2), 4)[:, None]


def rotation(
    *,
    target: Literal["parameters", "coefficients", "corners"] = "parameters",
    fill: Fill = "grey",
    fill_value: float = 0.0,
    truncate: bool = True,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> GeometricFamily:
    """Quarter turns, 0 to 3, counterclockwise and exact; four classes, or cosine and sine as the target.

    Args:
        target: cosine and sine of the turn, Pillow's six coefficients, or the displacements of the four corners.
        fill: what lies outside the image; a quarter turn shows nothing of it, a warp that follows in a sum does.
        fill_value: the constant, from 0 (black) to 1 (white).
        truncate: round the transformed image down to whole grey levels, as Pillow does.
        mean: of the target, one number each; computed for the image size where left out.
        std: of the target, one number each; computed for the image size where left out.
    """
    geometry = Geometry(target=target, fill=fill, fill_value=fill_value, truncate=truncate, mean=mean, std=std)
    check_geometry(RotationDistribution(), geometry)
    return GeometricFamily(RotationDistribution(), geometry)
