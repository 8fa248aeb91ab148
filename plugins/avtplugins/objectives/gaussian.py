"""The variational bound of AVT as the paper states it: a true Gaussian likelihood, free in its variance, and a noisy code.

Qi, Zhang, Chen and Tian, "AVT", ICCV 2019 (arXiv 1903.10863), equation 8, without the constants of the authors' release.
"""

from dataclasses import dataclass
from math import log, pi

from torch import Tensor

from avtcli.contracts import Loss, Objective, Target, TransformFamily


@dataclass(frozen=True, kw_only=True)
class Gaussian(Objective):
    """-log N(t; mean, exp(log_var)) in nats: sum of [log(2 pi) + log_var + (t - mean)^2 exp(-log_var)] / 2 over the parameters.

    With it, I(t; z | z~) >= H(t) - loss: the loss is in the units of the bound.
    """

    noise_scale: float
    has_log_var: bool = True

    def outputs(self, family: TransformFamily) -> int:
        """One output a target number."""
        return family.dof

    def loss(self, mean: Tensor, log_var: Tensor | None, target: Target) -> Loss:
        """The negative log-likelihood of each sample, (B,), and its parts: squared error a parameter, and mean log-variance."""
        assert log_var is not None  # has_log_var
        squared_error = (mean - target.values).square()
        nats = (log(2 * pi) + log_var + squared_error * (-log_var).exp()) / 2
        return Loss(nats.sum(1), {"mse": squared_error.mean(1), "log_var": log_var.mean(1)})


def gaussian(*, noise_scale: float = 1.0) -> Objective:
    """The honest bound: the Gaussian log-likelihood of the normalised target, in nats, with a free variance and real noise.

    Args:
        noise_scale: factor before the encoder's standard deviation, z = mean + scale * exp(log_var / 2) * eps.
    """
    return Gaussian(noise_scale=noise_scale)
