"""The likelihood of the transformation under a Laplace distribution, where AVT takes a Gaussian."""

from math import log

from torch import Tensor

from avtcli.contracts import Loss, Objective, Prediction, Target, TransformFamily
from avtcli.models.decoder import Decoder

CONTRACT_VERSION = 1


class Laplace(Objective):
    """-log of prod exp(-|t - mean| / b) / (2 b) in nats, with a variance 2 b^2 of exp(log_var)."""

    def __init__(self, vector_dim: int, family: TransformFamily, *, noise_scale: float) -> None:
        super().__init__()
        self.decoder = Decoder(2 * vector_dim, family.dof, log_var_scale=1.0)
        self.noise_scale = noise_scale

    def predict(self, codes: tuple[Tensor, ...]) -> Prediction:
        """Predict mean and log-variance of the normalised target, (B, dof) each."""
        prediction: Prediction = self.decoder(codes)
        return prediction

    def forward(self, codes: tuple[Tensor, ...], targets: tuple[Target, ...]) -> Loss:
        """Return the negative log-likelihood of each sample, (B,), and the absolute error per parameter."""
        prediction = self.predict(codes)
        log_var = prediction.log_var
        assert log_var is not None
        log_b = (log_var - log(2)) / 2
        error = (prediction.mean - targets[0].values).abs()
        return Loss((error * (-log_b).exp() + log_b + log(2)).sum(1), {"mae": error.mean(1)})


def stranger_laplace(*, vector_dim: int, family: TransformFamily, noise_scale: float = 0.1) -> Objective:
    """The Laplace log-likelihood of the normalised target, in nats, with a free variance.

    Args:
        vector_dim: given by the backbone.
        family: given by the transformations.
        noise_scale: factor before the encoder's standard deviation.
    """
    return Laplace(vector_dim, family, noise_scale=noise_scale)
