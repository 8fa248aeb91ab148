"""AVT: the likelihood of the transformation under the decoder, with the constants of the authors' release.

Qi, Zhang, Chen and Tian, "AVT: Unsupervised Learning of Transformation Equivariant Representations by Autoencoding
Variational Transformations", ICCV 2019 (arXiv 1903.10863), equation 8: maximise E log q(t | z~, z) over encoder and decoder.
"""

from dataclasses import dataclass

from torch import Tensor

from avtcli.contracts import Loss, Objective, Target, TransformFamily


@dataclass(frozen=True, kw_only=True)
class AVT(Objective):
    """-2 log q up to constants: sum over the parameters of log s2 + (mean - t)^2 / (s2 + variance_floor)."""

    noise_scale: float
    log_var_scale: float
    variance_floor: float
    has_log_var: bool = True

    def outputs(self, family: TransformFamily) -> int:
        """One output a target number."""
        return family.dof

    def loss(self, mean: Tensor, log_var: Tensor | None, target: Target) -> Loss:
        """The loss of each sample, (B,), and its parts: squared error a parameter, and mean log-variance."""
        assert log_var is not None  # has_log_var
        squared_error = (mean - target.values).square()
        per_sample = (log_var + squared_error / (log_var.exp() + self.variance_floor)).sum(1)
        return Loss(per_sample, {"mse": squared_error.mean(1), "log_var": log_var.mean(1)})


def avt(*, noise_scale: float = 0.001, log_var_divisor: float = 1000.0, variance_floor: float = 1e-4) -> Objective:
    """AVT's objective with the release's constants; with them it stays close to a squared error.

    Args:
        noise_scale: factor before the encoder's standard deviation, z = mean + scale * exp(log_var / 2) * eps.
        log_var_divisor: what the decoder's raw log-variance is divided by.
        variance_floor: added to the variance under the squared error.
    """
    return AVT(noise_scale=noise_scale, log_var_scale=1 / log_var_divisor, variance_floor=variance_floor)
