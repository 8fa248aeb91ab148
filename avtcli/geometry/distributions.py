"""Laws of random warps, and the four ways to state one of their warps as a target."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size
from avtcli.geometry.homography import (
    affine_in_from_out_from_corners,
    coefficients_from_matrix,
    corners_of,
    in_from_out_from_corners,
    inverse,
    map_points,
    matrix_from_coefficients,
)
from avtcli.geometry.lie import algebra_from_matrix, matrix_from_algebra

TargetKind = Literal["parameters", "coefficients", "corners", "sl3"]
"""A distribution's own numbers, Pillow's coefficients, the corners' displacements in pixels, or the Lie algebra."""

COEFFICIENT_NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")
COEFFICIENT_UNITS = ("", "", "px", "", "", "px", "1/px", "1/px")
CORNER_NAMES = ("x0", "y0", "x1", "y1", "x2", "y2", "x3", "y3")
ALGEBRA_NAMES = ("l11", "l12", "l13", "l21", "l22", "l23", "l31", "l32")


class TransformDistribution(ABC):
    """A distribution of random warps; a concrete one is a frozen value, since its statistics are kept by it.

    Parameters are (n, k), float64 and on the CPU when drawn, float32 or better and anywhere later.
    """

    names: tuple[str, ...] = ()
    """Of its own numbers, for `target=parameters`; empty for a distribution that has none."""
    coefficients: tuple[int, ...]
    """Which of the eight coefficients vary; the others are those of the identity."""
    algebra: tuple[int, ...]
    """Which of the eight entries of the logarithm vary; the others are 0."""
    is_affine: bool
    """Whether all its maps are affine."""
    n_classes: int | None = None

    @property
    def units(self) -> tuple[str, ...]:
        """Of its own numbers."""
        return ()

    @property
    @abstractmethod
    def max_turn_deg(self) -> float:
        """How far it turns an image at most; near half a turn a logarithm is not unique."""

    @abstractmethod
    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Draw n warps for images of a size: (n, k), float64."""

    @abstractmethod
    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """The matrices (n, 3, 3), last entry 1."""

    @abstractmethod
    def parameters_from_matrix(self, in_from_out: Tensor, size: Size) -> Tensor:
        """The inverse of `in_from_out` for matrices of the distribution, some near parameters for others; differentiable."""

    def values(self, parameters: Tensor, size: Size) -> Tensor:
        """Its own numbers, (n, len(names)).

        Raises:
            NotImplementedError: for a distribution that has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no numbers of its own")

    def parameters_from_values(self, numbers: Tensor, size: Size) -> Tensor:
        """The inverse of `numbers`; differentiable.

        Raises:
            NotImplementedError: for a distribution that has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no numbers of its own")

    def classes(self, parameters: Tensor) -> Tensor:
        """The class of each warp, (n,) int64.

        Raises:
            NotImplementedError: for a distribution without classes.
        """
        raise NotImplementedError(f"{type(self).__name__} has no classes")


def target_names(distribution: TransformDistribution, kind: TargetKind) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names and the units of a target's numbers."""
    if kind == "parameters":
        return distribution.names, distribution.units
    if kind == "corners":
        return CORNER_NAMES, ("px",) * 8
    if kind == "sl3":
        return tuple(ALGEBRA_NAMES[i] for i in distribution.algebra), ("",) * len(distribution.algebra)
    return tuple(COEFFICIENT_NAMES[i] for i in distribution.coefficients), tuple(
        COEFFICIENT_UNITS[i] for i in distribution.coefficients
    )


def raw_target(distribution: TransformDistribution, kind: TargetKind, parameters: Tensor, size: Size) -> Tensor:
    """The target before normalisation, (n, dof).

    Corners are displaced in the output: where the corner of the image has gone, less where it was (DeTone, Malisiewicz and
    Rabinovich, "Deep Image Homography Estimation", 2016, section II).
    """
    if kind == "parameters":
        return distribution.values(parameters, size)
    matrix = distribution.in_from_out(parameters, size)
    if kind == "corners":
        corners = corners_of(size).to(matrix)
        return (map_points(inverse(matrix), corners) - corners).flatten(1)
    if kind == "sl3":
        return algebra_from_matrix(matrix, size)[:, list(distribution.algebra)]
    return coefficients_from_matrix(matrix)[:, list(distribution.coefficients)]


def parameters_from_raw(distribution: TransformDistribution, kind: TargetKind, raw: Tensor, size: Size) -> Tensor:
    """The inverse of `raw_target`; differentiable, and defined for what a decoder says, which no matrix of the distribution may give."""
    if kind == "parameters":
        return distribution.parameters_from_values(raw, size)
    if kind == "corners":
        solve = affine_in_from_out_from_corners if distribution.is_affine else in_from_out_from_corners
        matrix = solve(raw.reshape(-1, 4, 2) + corners_of(size).to(raw), size)
    elif kind == "sl3":
        matrix = matrix_from_algebra(_spread(raw, distribution.algebra, (0.0,) * 8), size)
    else:
        matrix = matrix_from_coefficients(_spread(raw, distribution.coefficients, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)))
    return distribution.parameters_from_matrix(matrix, size)


def _spread(values: Tensor, places: tuple[int, ...], others: tuple[float, ...]) -> Tensor:
    """Put (n, len(places)) at their places among constants: (n, len(others))."""
    columns = [torch.full_like(values[:, 0], other) for other in others]
    for column, place in enumerate(places):
        columns[place] = values[:, column]
    return torch.stack(columns, 1)
