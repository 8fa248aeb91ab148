"""What is scored by predictors that see no image, or are told the quarter turn and no more: yardsticks for a decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from avtcli.contracts import Size, TransformFamily
from avtcli.geometry.geometric_family import GeometricFamily
from avtcli.geometry.homography import coefficients_from_matrix, corners_of, in_from_out_from_corners, matrix_from_coefficients
from avtcli.metrics.transformation_error import corner_error
from avtcli.seeding import keyed_generator

DRAWS = 10_000
"""Of the distribution, for its mean coefficients: they are known to a hundredth of their spread."""


@dataclass(frozen=True)
class ReferencePrediction:
    """One prediction for each of n transformations.

    Attributes:
        target: normalised, (n, dof), or none where the family does not tell the target of a matrix.
        in_from_out: (n, 3, 3), or none for a photometric family.
    """

    target: Tensor | None
    in_from_out: Tensor | None


def reference_predictions(family: TransformFamily, parameters: Tensor, size: Size) -> dict[str, ReferencePrediction]:
    """ReferencePrediction transformations by name of the predictor.

    - identity: nothing has transformed; for families with a matrix
    - constant: the mean target, which is 0 normalised; its matrix has the distribution's mean coefficients, also where the target
      is another, since mean corners may be a single point that no homography goes through
    - rotation_oracle: the corners turned by the best of four quarter turns about the image's centre (W/2, H/2), no scale and
      no shift; for families with a matrix. It is what a perfect RotNet knows

    Args:
        family: whose distribution and target count.
        parameters: of the transformations, (n, k).
        size: (height, width).
    """
    zeros = torch.zeros(len(parameters), family.dof, dtype=torch.float64)
    if family.kind == "photometric":
        return {"constant": ReferencePrediction(zeros, None)}
    true = family.in_from_out(parameters, size)
    identity = torch.eye(3, dtype=torch.float64).expand_as(true)
    turned = _nearest_turn(true, size)
    return {
        "identity": ReferencePrediction(_target(family, identity, size), identity),
        "constant": ReferencePrediction(zeros, mean_matrix(family, size).expand_as(true)),
        "rotation_oracle": ReferencePrediction(_target(family, turned, size), turned),
    }


def mean_matrix(family: TransformFamily, size: Size) -> Tensor:
    """The matrix of the distribution's mean coefficients, (1, 3, 3), from draws with a seed of their own."""
    drawn = family.in_from_out(family.sample(DRAWS, size, keyed_generator("mean matrix")), size)
    return matrix_from_coefficients(coefficients_from_matrix(drawn).mean(0, keepdim=True))


def quarter_turns(size: Size) -> Tensor:
    """The in_from_out matrices, (4, 3, 3), that move each corner of the image to the next, no, once, twice, thrice.

    They turn about (W/2, H/2); an image that is not square is stretched to fit.
    """
    order = (torch.arange(4) + torch.arange(4)[:, None]) % 4
    return in_from_out_from_corners(corners_of(size)[order], size)


def _nearest_turn(true: Tensor, size: Size) -> Tensor:
    turns = quarter_turns(size)
    errors = torch.stack([corner_error(true, turn.expand_as(true), size) for turn in turns])
    return turns[errors.argmin(0)]


def _target(family: TransformFamily, in_from_out: Tensor, size: Size) -> Tensor | None:
    if not isinstance(family, GeometricFamily):
        return None
    return family.target(family.distribution.parameters_from_matrix(in_from_out, size), size)
