"""The variational bound of AVT as the paper states it: the exact Gaussian likelihood, free in its variance, and a noisy code.

Qi, Zhang, Chen and Tian, "AVT", ICCV 2019 (arXiv 1903.10863), equation 8, without the constants of the authors' release.
"""

from math import log, pi

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from avtcli.contracts import Loss, Objective, Prediction, Target, TransformFamily
from avtcli.models.decoder import Decoder


class Gaussian(Objective):
    """-log N(t; mean, exp(log_var)) in nats: sum of [log(2 pi) + log_var + (t - mean)^2 exp(-log_var)] / 2 over the parameters.

    With it, I(t; z | z~) >= H(t) - loss: the loss is in the units of the bound.
    """

    def __init__(self, vector_dim: int, family: TransformFamily, *, noise_scale: float) -> None:
        super().__init__()
        self.decoder = Decoder(2 * vector_dim, family.dof, log_var_scale=1.0)
        self.noise_scale = noise_scale

    def predict(self, codes: tuple[Tensor, ...]) -> Prediction:
        """Predict mean and log-variance of the normalised target, (B, dof) each."""
        return self.decoder(codes)  # type: ignore[no-any-return]

    def log_var_layer(self) -> nn.Module | None:
        """Return the decoder's log-variance layer."""
        return self.decoder.log_var_head

    def forward(self, codes: tuple[Tensor, ...], targets: tuple[Target, ...]) -> Loss:
        """Return the negative log-likelihood of each sample, (B,), squared error per parameter, and mean log-variance."""
        prediction = self.predict(codes)
        log_var = prediction.log_var
        assert log_var is not None
        squared_error = (prediction.mean - targets[0].values).square()
        nats = (log(2 * pi) + log_var + squared_error * (-log_var).exp()) / 2
        return Loss(nats.sum(1), {"mse": squared_error.mean(1), "log_var": log_var.mean(1)})


def gaussian(*, vector_dim: int, family: TransformFamily, noise_scale: NonNegativeFloat = 1.0) -> Objective:
    """The paper's bound: the exact Gaussian log-likelihood of the normalised target, in nats, with a free variance.

    Args:
        vector_dim: given by the backbone.
        family: given by the transformations.
        noise_scale: factor before the encoder's standard deviation, z = mean + scale * exp(log_var / 2) * eps.
    """
    return Gaussian(vector_dim, family, noise_scale=noise_scale)
