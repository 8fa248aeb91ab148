"""The likelihood of the transformation under a Laplace distribution, where AVT takes a Gaussian."""

from dataclasses import dataclass
from math import log

from torch import Tensor

from avtcli.contracts import Loss, Objective, Target, TransformFamily

CONTRACT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Laplace(Objective):
    """-log of prod exp(-|t - mean| / b) / (2 b) in nats, with a variance 2 b^2 of exp(log_var)."""

    noise_scale: float
    has_log_var: bool = True

    def outputs(self, family: TransformFamily) -> int:
        """One output a target number."""
        return family.dof

    def loss(self, mean: Tensor, log_var: Tensor | None, target: Target) -> Loss:
        """The negative log-likelihood of each sample, (B,), and the absolute error a number."""
        assert log_var is not None  # has_log_var
        log_b = (log_var - log(2)) / 2
        error = (mean - target.values).abs()
        return Loss((error * (-log_b).exp() + log_b + log(2)).sum(1), {"mae": error.mean(1)})


def stranger_laplace(*, noise_scale: float = 0.1) -> Objective:
    """The Laplace log-likelihood of the normalised target, in nats, with a free variance.

    Args:
        noise_scale: factor before the encoder's standard deviation.
    """
    return Laplace(noise_scale=noise_scale)
