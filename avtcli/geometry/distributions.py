"""Distributions of random warps, and the three target kinds that describe a warp."""

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

TargetKind = Literal["parameters", "coefficients", "corners"]
"""The distribution's own values, Pillow's coefficients, or the displacements of the image's corners in pixels."""

COEFFICIENT_NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")
COEFFICIENT_UNITS = ("", "", "px", "", "", "px", "1/px", "1/px")
CORNER_NAMES = ("x0", "y0", "x1", "y1", "x2", "y2", "x3", "y3")
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)


class TransformDistribution(ABC):
    """A distribution of random warps; subclasses are frozen dataclasses, since statistics are cached by distribution.

    Sampled parameters are (n, k), float64, on the CPU. Other methods accept float32 or better on any device.
    """

    names: tuple[str, ...]
    """Names of the values, for `target=parameters`."""
    coefficients: tuple[int, ...]
    """Indices of the coefficients that vary; the others are those of the identity."""
    n_classes: int | None = None

    @property
    def units(self) -> tuple[str, ...]:
        """Units of the values; pure numbers by default."""
        return ("",) * len(self.names)

    @abstractmethod
    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Sample the parameters of n warps for images of a size: (n, k), float64."""

    @abstractmethod
    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """Return the matrices (n, 3, 3), last entry 1."""

    @abstractmethod
    def parameters_from_matrix(self, in_from_out: Tensor, size: Size) -> Tensor:
        """Invert `in_from_out`, differentiably; a matrix outside the distribution gives parameters of a near one."""

    def values(self, parameters: Tensor, size: Size) -> Tensor:
        """Return the values to predict, (n, len(names)); the parameters by default."""
        return parameters

    def parameters_from_values(self, values: Tensor, size: Size) -> Tensor:
        """Invert `values`, differentiably."""
        return values

    def classes(self, parameters: Tensor) -> Tensor:
        """Return the class of each warp, (n,) int64.

        Raises:
            NotImplementedError: for a distribution without classes.
        """
        raise NotImplementedError(f"{type(self).__name__} has no classes")


def target_names(distribution: TransformDistribution, kind: TargetKind) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names and the units of the target's components."""
    if kind == "parameters":
        return distribution.names, distribution.units
    if kind == "corners":
        return CORNER_NAMES, ("px",) * 8
    names, units = ([each[i] for i in distribution.coefficients] for each in (COEFFICIENT_NAMES, COEFFICIENT_UNITS))
    return tuple(names), tuple(units)


def raw_target(distribution: TransformDistribution, kind: TargetKind, parameters: Tensor, size: Size) -> Tensor:
    """Return the target before normalisation, (n, dof).

    A corner's displacement is its position in the output minus its position in the input (DeTone, Malisiewicz and
    Rabinovich, "Deep Image Homography Estimation", 2016, section II).
    """
    if kind == "parameters":
        return distribution.values(parameters, size)
    matrix = distribution.in_from_out(parameters, size)
    if kind == "corners":
        corners = corners_of(size).to(matrix)
        return (map_points(inverse(matrix), corners) - corners).flatten(1)
    return coefficients_from_matrix(matrix)[:, list(distribution.coefficients)]


def parameters_from_raw(distribution: TransformDistribution, kind: TargetKind, raw: Tensor, size: Size) -> Tensor:
    """Invert `raw_target`, differentiably; accepts any prediction, also one that no matrix of the distribution gives."""
    if kind == "parameters":
        return distribution.parameters_from_values(raw, size)
    if kind == "corners":
        is_affine = max(distribution.coefficients) < 6
        solve = affine_in_from_out_from_corners if is_affine else in_from_out_from_corners
        matrix = solve(raw.reshape(-1, 4, 2) + corners_of(size).to(raw), size)
    else:
        columns = [torch.full_like(raw[:, 0], entry) for entry in IDENTITY]
        for i, column in zip(distribution.coefficients, raw.unbind(1), strict=True):
            columns[i] = column
        matrix = matrix_from_coefficients(torch.stack(columns, 1))
    return distribution.parameters_from_matrix(matrix, size)
