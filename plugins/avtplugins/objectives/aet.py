"""AET: the squared error of the transformation's parameters.

Zhang, Qi, Wang and Luo, "AET vs. AED: Unsupervised Representation Learning by Auto-Encoding Transformations rather than
Data", CVPR 2019 (arXiv 1901.04596); averaged over the parameters as in its authors' release.
"""

from torch import Tensor

from avtcli.contracts import Loss, Objective, Prediction, Target, TransformFamily
from avtcli.models.decoder import Decoder


class AET(Objective):
    """(1 / dof) sum over the parameters of (mean - t)^2: no noise in the code, no variance in the decoder."""

    def __init__(self, vector_dim: int, family: TransformFamily) -> None:
        super().__init__()
        self.decoder = Decoder(2 * vector_dim, family.dof)

    def predict(self, codes: tuple[Tensor, ...]) -> Prediction:
        """Predict the normalised target, (B, dof)."""
        return self.decoder(codes)  # type: ignore[no-any-return]

    def forward(self, codes: tuple[Tensor, ...], targets: tuple[Target, ...]) -> Loss:
        """Return the mean squared error of each sample, (B,)."""
        return Loss((self.predict(codes).mean - targets[0].values).square().mean(1))


def aet(*, vector_dim: int, family: TransformFamily) -> Objective:
    """AET's objective: the mean squared error of the normalised target, from a code without noise."""
    return AET(vector_dim, family)
