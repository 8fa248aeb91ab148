"""Multinomial logistic regression with an L2 penalty, by L-BFGS."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from avtcli.metrics.feature_statistics import require_finite

ITERATIONS = 200
"""The most iterations of L-BFGS for one penalty."""

HISTORY = 10
"""Steps and changes of the gradient that L-BFGS keeps."""

TOLERANCE = 1e-5
"""Largest entry of the gradient at which L-BFGS stops; scikit-learn's default is 1e-4."""


@dataclass(frozen=True)
class LogisticRegression:
    """A fitted regression on features that are not standardised: penalty, weight (d, classes) and bias (classes,)."""

    penalty: float
    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of features x (n, d)."""
        return x.to(self.weight) @ self.weight + self.bias


def fit_logistic(x: Tensor, labels: Tensor, penalties: Sequence[float], *, classes: int) -> list[LogisticRegression]:
    """Fit one regression per penalty, the largest first; each starts from the one before.

    With the columns of x standardised (a constant column gets the weight 0) each minimises the mean cross-entropy
    + penalty / 2 |w|^2; the bias is not penalised. scikit-learn's C is 1 / (penalty n).

    Args:
        x: (n, d), floating point; computed in its type, on its device.
        labels: (n,) int64 in 0..classes - 1.
        penalties: above 0.
        classes: number of classes.

    Returns:
        The regressions, by falling penalty.

    Raises:
        AvtError: if a feature is not finite.
    """
    std, mean = torch.std_mean(require_finite(x), 0, correction=0)
    std = torch.where(std > 0, std, torch.inf)
    z, labels = (x - mean) / std, labels.to(x.device)
    parameters = torch.zeros(x.shape[1] + 1, classes, dtype=x.dtype, device=x.device, requires_grad=True)
    fitted = []
    for penalty in sorted(penalties, reverse=True):
        _minimise(z, labels, parameters, penalty)
        weight = parameters.detach()[:-1] / std[:, None]
        fitted.append(LogisticRegression(penalty, weight, parameters.detach()[-1] - mean @ weight))
    return fitted


def _minimise(z: Tensor, labels: Tensor, parameters: Tensor, penalty: float) -> None:
    """Minimise over the parameters, (d + 1, classes), in place; their last row is the bias."""
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=ITERATIONS,
        history_size=HISTORY,
        tolerance_grad=TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        weight, bias = parameters[:-1], parameters[-1]
        value = functional.cross_entropy(torch.addmm(bias, z, weight), labels) + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
