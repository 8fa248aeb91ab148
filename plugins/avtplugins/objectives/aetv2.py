"""AETv2: the geodesic distance between the true and the decoded homography.

"AETv2: AutoEncoding Transformations for Self-Supervised Representation Learning by Minimizing Geodesic Distances in Lie
Groups", arXiv 1911.07004: theta^-1 theta_hat is projected to the rotations SO(3), where the geodesic has a closed form.
"""

from typing import Any

import torch
from torch import Tensor

from avtcli.contracts import Loss, Objective, Prediction, Target, TransformFamily
from avtcli.errors import AvtError
from avtcli.geometry.homography import inverse, product, unit_homography
from avtcli.models.decoder import Decoder

DETERMINANT_FLOOR = 1e-2  # a decoded matrix may collapse the image: dividing by less would let its gradient explode


class NearestRotation(torch.autograd.Function):
    """The rotation nearest to a matrix: R = U diag(1, 1, det U V^T) V^T from the singular value decomposition U S V^T.

    Its gradient is written out because that of the decomposition is infinite where singular values are equal, as they are at
    the goal: dR = U [(U^T dM V - V^T dM^T U) / (s_i + s_j)] V^T stays finite there.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        """(n, 3, 3) -> (n, 3, 3)."""
        left, values, right = torch.linalg.svd(matrix)
        flip = torch.ones_like(values)
        flip[:, 2] = (torch.linalg.det(left) * torch.linalg.det(right)).sign()
        left, values = left * flip[:, None, :], values * flip
        ctx.save_for_backward(left, values, right)
        return product(left, right)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The adjoint of dR, in the bases of U and V; pairs of values that cancel are kept apart."""
        left, values, right = ctx.saved_tensors
        inner = product(product(left.mT, gradients[0]), right.mT)
        sums = (values[:, :, None] + values[:, None, :]).clamp(min=1e-3)
        return product(product(left, (inner - inner.mT) / sums), right)


def rotation_angle(rotation: Tensor) -> Tensor:
    """The length of the geodesic from 1 to a rotation, arccos((tr R - 1) / 2), in [0, pi]: (n, 3, 3) -> (n,).

    By the arc tangent of sine and cosine: the arc cosine's gradient is infinite at both ends.
    """
    skew = (rotation - rotation.mT) / 2
    sine = torch.linalg.vector_norm(torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], 1), dim=1)
    cosine = (rotation.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    return torch.atan2(sine, cosine)


class AETv2(Objective):
    """|Log R| + residual_weight |M - R|, M = theta^-1 theta_hat, R its nearest rotation, |Log R| = arccos((tr R - 1) / 2).

    theta and theta_hat are the true and the decoded in_from_out in unit coordinates (the image is [-1, 1] x [-1, 1]), with
    determinant 1, so that neither the image's size nor a matrix's scale counts. The distance |M - R| (Frobenius) holds M close
    to the rotations: the angle alone does not see what the projection removes. Its form and weight are our choice.
    """

    def __init__(self, vector_dim: int, family: TransformFamily, *, residual_weight: float) -> None:
        super().__init__()
        self.decoder = Decoder(2 * vector_dim, family.dof)
        self.residual_weight = residual_weight

    def predict(self, codes: tuple[Tensor, ...]) -> Prediction:
        """Predict the normalised target, (B, dof)."""
        return self.decoder(codes)  # type: ignore[no-any-return]

    def forward(self, codes: tuple[Tensor, ...], targets: tuple[Target, ...]) -> Loss:
        """Return the loss of each sample, (B,), and its parts: the angle in radians and the distance of the projection."""
        mean, (target,) = self.predict(codes).mean, targets
        family, size, work = target.family, target.size, torch.promote_types(mean.dtype, torch.float32)
        true = family.in_from_out(target.parameters.to(work), size)
        decoded = family.in_from_out(family.decode(mean.to(work), size), size)
        true, decoded = unit_homography(true, size), unit_homography(decoded, size, floor=DETERMINANT_FLOOR)
        error = product(inverse(true), decoded)
        rotation = NearestRotation.apply(error)
        angle, residual = rotation_angle(rotation), torch.linalg.vector_norm(error - rotation, dim=(1, 2))
        return Loss(angle + self.residual_weight * residual, {"angle": angle, "residual": residual})


def aetv2(*, vector_dim: int, family: TransformFamily, residual_weight: float = 1.0) -> Objective:
    """AETv2's objective: the geodesic distance of rotations, after a projection, between true and decoded homographies.

    Args:
        vector_dim: given by the backbone.
        family: given by the transformations; a geometric one.
        residual_weight: factor, 0 or more, before the distance between the matrix and its projection.
    """
    if residual_weight < 0:
        raise AvtError(f"objective.residual_weight needs a weight of 0 or more, found {residual_weight}.")
    if family.kind != "geometric":
        found = f"this one is {family.kind}, its target is {', '.join(family.names)}"
        hint = "Choose --transform projective, or --objective aet"
        raise AvtError(f"The objective 'aetv2' needs a geometric family; {found}. {hint}.")
    return AETv2(vector_dim, family, residual_weight=residual_weight)
