"""Predictors that see no image, or know the rotation by multiples of 90 degrees only: references for a decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from avtcli.contracts import Size, TransformFamily
from avtcli.geometry.geometric_family import GeometricFamily
from avtcli.geometry.homography import coefficients_from_matrix, corners_of, in_from_out_from_corners, matrix_from_coefficients
from avtcli.metrics.transformation_error import corner_error
from avtcli.seeding import keyed_generator

SAMPLES = 10_000
"""Samples that estimate the mean coefficients: a standard error of a hundredth of their deviation."""


@dataclass(frozen=True)
class ReferencePrediction:
    """Predictions for n transformations.

    Attributes:
        target: normalised, (n, dof), or none where the family cannot give the target of a matrix.
        in_from_out: (n, 3, 3), or none for a photometric family.
    """

    target: Tensor | None
    in_from_out: Tensor | None


def reference_predictions(family: TransformFamily, parameters: Tensor, size: Size) -> dict[str, ReferencePrediction]:
    """Predict transformations with parameters (n, k) of images of (height, width), by name of the predictor.

    - identity: no transformation; for families with a matrix
    - constant: the mean target, which is 0 after normalisation; its matrix has the mean coefficients for every kind of
      target, since mean corners may be a single point, which no homography maps
    - rotation_oracle: the best of the four 90-degree rotations about the image's centre (W/2, H/2), without scale and shift;
      for families with a matrix. A perfect RotNet knows this much
    """
    zeros = torch.zeros(len(parameters), family.dof, dtype=torch.float64)
    if family.kind == "photometric":
        return {"constant": ReferencePrediction(zeros, None)}
    true = family.in_from_out(parameters, size)
    identity, rotated = torch.eye(3, dtype=torch.float64).expand_as(true), _nearest_rotation(true, size)
    return {
        "identity": ReferencePrediction(_target(family, identity, size), identity),
        "constant": ReferencePrediction(zeros, mean_matrix(family, size).expand_as(true)),
        "rotation_oracle": ReferencePrediction(_target(family, rotated, size), rotated),
    }


def mean_matrix(family: TransformFamily, size: Size) -> Tensor:
    """The matrix of the distribution's mean coefficients, (1, 3, 3), estimated from samples with a fixed seed."""
    sampled = family.in_from_out(family.sample(SAMPLES, size, keyed_generator("mean matrix")), size)
    return matrix_from_coefficients(coefficients_from_matrix(sampled).mean(0, keepdim=True))


def rotations_by_90_deg(size: Size) -> Tensor:
    """The in_from_out matrices, (4, 3, 3), of the rotations by 0, 90, 180 and 270 degrees about (W/2, H/2).

    They permute the corners of the image: one that is not square is stretched to fit.
    """
    order = (torch.arange(4) + torch.arange(4)[:, None]) % 4
    return in_from_out_from_corners(corners_of(size)[order], size)


def _nearest_rotation(true: Tensor, size: Size) -> Tensor:
    rotations = rotations_by_90_deg(size)
    errors = torch.stack([corner_error(true, rotation.expand_as(true), size) for rotation in rotations])
    return rotations[errors.argmin(0)]


def _target(family: TransformFamily, in_from_out: Tensor, size: Size) -> Tensor | None:
    if not isinstance(family, GeometricFamily):
        return None
    return family.target(family.distribution.parameters_from_matrix(in_from_out, size), size)
