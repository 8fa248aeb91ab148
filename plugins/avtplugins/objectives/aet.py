"""AET: the squared error of the transformation's parameters.

Zhang, Qi, Wang and Luo, "AET vs. AED: Unsupervised Representation Learning by Auto-Encoding Transformations rather than
Data", CVPR 2019 (arXiv 1901.04596); averaged over the parameters as in its authors' release.
"""

from dataclasses import dataclass

from torch import Tensor

from avtcli.contracts import Loss, Objective, Target, TransformFamily


@dataclass(frozen=True)
class AET(Objective):
    """(1 / dof) sum over the parameters of (mean - t)^2: no noise in the code, no variance in the decoder."""

    def outputs(self, family: TransformFamily) -> int:
        """One output a target number."""
        return family.dof

    def loss(self, mean: Tensor, log_var: Tensor | None, target: Target) -> Loss:
        """The mean squared error of each sample, (B,)."""
        return Loss((mean - target.values).square().mean(1))


def aet() -> Objective:
    """AET's objective: the mean squared error of the normalised target, from a code without noise."""
    return AET()
