"""Ridge regression in closed form.

Source: Hoerl and Kennard, "Ridge regression: biased estimation for nonorthogonal problems" (1970), equation 2.1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avtcli.errors import AvtError, ShapeError
from avtcli.metrics.feature_statistics import require_finite

CHUNK_BYTES = 2**26
"""Size of the part of x that is held in float64 at once."""


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge for x that is not standardised: penalty, weight (d, m) and bias (m,), float64."""

    penalty: float
    weight: Tensor
    bias: Tensor

    def predict(self, x: Tensor) -> Tensor:
        """Predict from x (n, d), read in chunks: (n, m) float64, on the device of the weight."""
        parts = torch.split(x, _chunk(len(self.weight)))
        return torch.cat([part.to(self.weight) @ self.weight + self.bias for part in parts])


def fit_ridges(x: Tensor, y: Tensor, penalties: Sequence[float], *, rows: Tensor | None = None) -> list[Ridge]:
    """Fit one ridge per penalty.

    With y centred and the columns of x standardised (a constant column gets the weight 0), each minimises
    sum |y - x w|^2 + penalty n |w|^2. The d by d problem is solved where d <= n, else its n by n dual, by Cholesky. x is read
    in chunks without a copy and may be memory-mapped. Computed in float64 on x's device, on the CPU for MPS.

    Args:
        x: (n, d), float32 or float64.
        y: (n, m).
        penalties: above 0.
        rows: indices of the rows to use, (n',) int64; all where left out.

    Returns:
        The ridges in the order of the penalties, for x that is not standardised.

    Raises:
        ShapeError: if x and y differ in their rows, or have none.
        AvtError: if there is no penalty, if one is not above 0 or below numerical precision, or if a feature is not finite.
    """
    ridges = _fit(x, y, penalties, torch.arange(len(x)) if rows is None else rows)
    fitted = {ridge.penalty for ridge in ridges}
    vanished = [f"{penalty:g}" for penalty in penalties if penalty not in fitted]
    if vanished:
        raise AvtError(f"Ridge penalties of {', '.join(vanished)} are below numerical precision: give larger ones.")
    return ridges


def choose_ridge(
    x: Tensor,
    y: Tensor,
    penalties: Sequence[float],
    *,
    held_out: Tensor,
    rows: Tensor | None = None,
    score: Callable[[Tensor, Tensor], float],
) -> tuple[Ridge, float]:
    """Choose the penalty on held-out rows, then fit all rows with it.

    Arguments as for `fit_ridges`, but penalties below numerical precision are skipped. `held_out` is a mask (n,) bool, or
    indices of rows. `score` takes the predicted and the true (h, m) of the held-out rows, float64; larger is better, nan is
    worst, and the smallest of equally good penalties is chosen.

    Returns:
        The ridge fitted on all rows to use, and the held-out score of its penalty.

    Raises:
        AvtError: if all rows or none are held out; and what `fit_ridges` raises.
    """
    rows = torch.arange(len(x)) if rows is None else rows.cpu()
    mask = torch.zeros(len(x), dtype=torch.bool)
    mask[held_out.cpu()] = True
    held, rest = rows[mask[rows]], rows[~mask[rows]]
    if not len(held) or not len(rest):
        raise AvtError(f"{len(held)} of {len(rows)} rows are held out; at least one must be, and at least one must not.")
    ridges = _fit(x, y, sorted(penalties), rest) or fit_ridges(x, y, penalties, rows=rest)  # which raises the error
    truth = y[held.to(y.device)].to(ridges[0].weight)
    joined = Ridge(0, torch.cat([ridge.weight for ridge in ridges], 1), torch.cat([ridge.bias for ridge in ridges]))
    parts = torch.split(held.to(x.device), _chunk(x.shape[1]))
    predictions = torch.cat([joined.predict(x[part]) for part in parts])  # x is read once
    scores = [score(predicted, truth) for predicted in torch.split(predictions, y.shape[1], dim=1)]
    best = max(range(len(scores)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i])
    return fit_ridges(x, y, [ridges[best].penalty], rows=rows)[0], scores[best]


def _fit(x: Tensor, y: Tensor, penalties: Sequence[float], rows: Tensor) -> list[Ridge]:
    """Fit the ridges whose penalty is not below numerical precision.

    With z = (x - mean) / std: w = (z' z + penalty n)^-1 z' (y - mean), or z' (z z' + penalty n)^-1 (y - mean).
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not len(x):
        raise ShapeError(f"x {tuple(x.shape)} and y {tuple(y.shape)} must be (n, d) and (n, m), with n of 1 or more.")
    if not penalties or not all(penalty > 0 for penalty in penalties):
        raise AvtError(f"Penalties must be one or more numbers above 0, not {list(penalties)}.")
    rows, device = rows.to(x.device), torch.device("cpu") if x.device.type == "mps" else x.device  # MPS has no float64
    y = y[rows.to(y.device)].to(device, torch.float64)
    y_mean = y.mean(0)
    y = y - y_mean
    mean, std = _moments(x, rows, device)
    n, d = len(rows), x.shape[1]
    if d <= n:
        gram, cross = y.new_zeros(d, d), y.new_zeros(d, y.shape[1])
        for part, targets in zip(torch.split(rows, _chunk(d)), torch.split(y, _chunk(d)), strict=True):
            z = (x[part].to(y) - mean) / std
            gram.addmm_(z.T, z)
            cross.addmm_(z.T, targets)
        weights = _solve_regularized(gram, cross, penalties, n)
    else:
        kernel, width = y.new_zeros(n, n), _chunk(n)
        columns = list(zip(*(torch.split(values, width, dim=-1) for values in (x, mean, std)), strict=True))
        for part, centre, scale in columns:
            z = (part[rows].to(y) - centre) / scale
            kernel.addmm_(z, z.T)
        duals = _solve_regularized(kernel, y, penalties, n)
        joined = torch.cat([*duals.values(), y[:, :0]], 1)
        weight = torch.cat([((part[rows].to(y) - centre) / scale).T @ joined for part, centre, scale in columns])
        weights = dict(zip(duals, torch.split(weight, y.shape[1], dim=1), strict=False))
    unscaled = {penalty: weight / std[:, None] for penalty, weight in weights.items()}
    return [Ridge(p, unscaled[p], y_mean - mean @ unscaled[p]) for p in penalties if p in unscaled]


def _moments(x: Tensor, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the columns, (d,) each; infinite for a constant column, whose weight is then exactly 0.

    Sums are taken relative to one row: exact zeros for constant columns, and few lost digits.
    """
    origin = x[rows[0]].to(device, torch.float64)
    total, squares = torch.zeros_like(origin), torch.zeros_like(origin)
    for part in torch.split(rows, _chunk(len(origin))):
        shifted = x[part].to(origin) - origin
        total += shifted.sum(0)
        squares += shifted.square().sum(0)
    mean = require_finite(total) / len(rows)
    variance = squares / len(rows) - mean.square()
    return origin + mean, torch.where(variance > 0, variance, torch.inf).sqrt()


def _solve_regularized(matrix: Tensor, right: Tensor, penalties: Sequence[float], n: int) -> dict[float, Tensor]:
    """(matrix + penalty n)^-1 right by penalty; those below numerical precision are left out."""
    solved = {}
    for penalty in penalties:
        factor = matrix.clone()
        factor.diagonal().add_(penalty * n)
        factor, failed = torch.linalg.cholesky_ex(factor)
        if not failed:
            solved[penalty] = torch.cholesky_solve(right, factor)
        del factor  # before the next one: each is as large as the matrix
    return solved


def _chunk(width: int) -> int:
    return max(1, CHUNK_BYTES // (8 * max(1, width)))
