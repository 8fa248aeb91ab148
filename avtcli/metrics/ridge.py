"""Linear regression with a penalty, in closed form: what a linear reader finds in features.

Weights: Hoerl and Kennard, "Ridge regression: biased estimation for nonorthogonal problems" (1970), equation 2.1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avtcli.errors import AvtError, ShapeError
from avtcli.metrics.feature_statistics import require_finite

CHUNK_BYTES = 2**26
"""How much of x is held in float64 at once."""

BLOCK = 512
"""Columns of a matrix of products that are computed at once: a triangle of 3072 rows takes 0.6 of the time of the whole."""


@dataclass(frozen=True)
class Ridge:
    """A fitted line, for x as it came, in float64.

    Attributes:
        penalty: what it was fitted with.
        weight: (d, m).
        bias: (m,).
    """

    penalty: float
    weight: Tensor
    bias: Tensor

    def predict(self, x: Tensor) -> Tensor:
        """Predict from x (n, d), read in chunks: (n, m) float64, on the device of the weight."""
        parts = torch.split(x, _chunk(len(self.weight)))
        return torch.cat([part.to(self.weight) @ self.weight + self.bias for part in parts])


def fit_ridges(x: Tensor, y: Tensor, penalties: Sequence[float], *, rows: Tensor | None = None) -> list[Ridge]:
    """Fit one ridge a penalty.

    With the columns of x standardised on these rows (a constant one gets the weight 0) and y centred, each minimises
    sum |y - x w|^2 + penalty n |w|^2. The d by d problem is solved where d <= n, else its n by n dual, by Cholesky. x is read
    in chunks and may be memory-mapped; no copy of it is made. The work is done in float64 on x's device, on the CPU for MPS.

    Args:
        x: (n, d), float32 or float64.
        y: (n, m).
        penalties: above 0.
        rows: the numbers of the rows to use, (n',) int64; all where left out.

    Returns:
        The ridges in the order of the penalties, for x that is not standardised.

    Raises:
        ShapeError: if x and y differ in their rows, or have none.
        AvtError: if there is no penalty, if one is not above 0 or is lost in rounding, or if a feature is not finite.
    """
    _check(x, y, penalties)
    rows = torch.arange(len(x), device=x.device) if rows is None else rows.to(x.device)
    ridges = _dual(x, y, penalties, rows) if x.shape[1] > len(rows) else _primal(_sum(x, y, rows), penalties)
    _refuse_lost(penalties, [ridge.penalty for ridge in ridges])
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

    Args:
        x: (n, d), as `fit_ridges` takes it.
        y: (n, m).
        penalties: above 0; one that is lost in rounding is passed over, the smallest of equally good ones is chosen.
        held_out: a mask (n,) bool, or the numbers of rows, int64.
        rows: the numbers of the rows to use at all, (n',) int64; all where left out.
        score: of the predicted and the true (h, m) on the held-out rows, float64; larger is better, nan is worst.

    Returns:
        The ridge fitted on all rows to use, and the held-out score of its penalty.

    Raises:
        AvtError: if all rows or none are held out; and what `fit_ridges` raises.
    """
    _check(x, y, penalties)
    mask = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    mask[held_out.to(x.device)] = True
    rows = torch.arange(len(x), device=x.device) if rows is None else rows.to(x.device)
    held, rest = rows[mask[rows]], rows[~mask[rows]]
    if not len(held) or not len(rest):
        raise AvtError(f"{len(held)} of {len(rows)} rows are held out; at least one must be, and at least one must not.")
    sums = _sum(x, y, rest) if x.shape[1] <= len(rest) else None  # of the rows to choose on, and of all once they are added
    ridges = _dual(x, y, sorted(penalties), rest) if sums is None else _primal(sums, sorted(penalties))
    if not ridges:
        _refuse_lost(penalties, [])
    truth = y[held.to(y.device)].to(ridges[0].weight)
    scores = [score(predicted, truth) for predicted in _predictions(ridges, x, held)]
    best = max(range(len(scores)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i])
    penalty = ridges[best].penalty
    ridge = fit_ridges(x, y, [penalty], rows=rows) if sums is None else _primal(sums.add(x, y, held), [penalty])
    return ridge[0], scores[best]


def _refuse_lost(penalties: Sequence[float], kept: Sequence[float]) -> None:
    """Raise AvtError for penalties so small beside the features that the sums' rounding hides them."""
    lost = [f"{penalty:g}" for penalty in penalties if penalty not in kept]
    if lost:
        raise AvtError(f"Ridge penalties of {', '.join(lost)} are lost in rounding: give larger ones.")


class _Sums:
    """Sums over rows of x and y and of their products, to which those of more rows can be added.

    Args:
        x: of a row of theirs, (d,), float64, from which all rows are seen: exact zeros for constant columns, and sums that
            lose few digits.
        y: likewise, (m,).
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.origin, self.y_origin, self.count = x, y, 0
        self.x, self.y = torch.zeros_like(x), torch.zeros_like(y)
        self.gram, self.cross = x.new_zeros(len(x), len(x)), x.new_zeros(len(x), len(y))  # gram: its lower triangle

    def add(self, x: Tensor, y: Tensor, rows: Tensor) -> "_Sums":
        """Add those of some rows, read in chunks; return itself."""
        for part in torch.split(rows, _chunk(x.shape[1])):
            shifted = x[part].to(self.origin) - self.origin
            targets = y[part.to(y.device)].to(self.origin) - self.y_origin
            self.x += shifted.sum(0)
            self.y += targets.sum(0)
            _add_products(self.gram, shifted.T)
            self.cross.addmm_(shifted.T, targets)
        self.count += len(rows)
        return self


def _sum(x: Tensor, y: Tensor, rows: Tensor) -> _Sums:
    first_x, first_y = (each[rows[0].to(each.device)].to(_device(x), torch.float64) for each in (x, y))
    return _Sums(first_x, first_y).add(x, y, rows)


def _primal(sums: _Sums, penalties: Sequence[float]) -> list[Ridge]:
    """Solve with z = (x - mean) / std: w = (z' z + penalty n)^-1 z' (y - mean)."""
    mean, y_mean = require_finite(sums.x) / sums.count, sums.y / sums.count
    gram = sums.gram.addr(mean, mean, alpha=-sums.count)
    std = _std(gram.diagonal() / sums.count)
    gram.div_(std).div_(std[:, None])
    cross = sums.cross.addr(mean, y_mean, alpha=-sums.count) / std[:, None]
    weights = _solve_regularized(gram, cross, [penalty * sums.count for penalty in penalties])
    return _ridges(penalties, weights, mean=sums.origin + mean, std=std, y_mean=sums.y_origin + y_mean)


def _dual(x: Tensor, y: Tensor, penalties: Sequence[float], rows: Tensor) -> list[Ridge]:
    """Solve with z = (x - mean) / std: w = z' (z z' + penalty n)^-1 (y - mean), column by column of x."""
    y = y[rows.to(y.device)].to(_device(x), torch.float64)
    kernel, y_mean = y.new_zeros(len(rows), len(rows)), y.mean(0)
    means, stds = [], []
    for columns in torch.split(x, _chunk(len(rows)), dim=1):
        z, mean, std = _standardised(columns[rows].to(y))
        _add_products(kernel, z)
        means.append(mean)
        stds.append(std)
    found = _solve_regularized(kernel, y - y_mean, [penalty * len(rows) for penalty in penalties])
    duals = torch.cat([y.new_zeros(y.shape) if dual is None else dual for dual in found], 1)
    parts = [_standardised(columns[rows].to(y))[0].T @ duals for columns in torch.split(x, _chunk(len(rows)), dim=1)]
    solved = torch.split(torch.cat(parts), y.shape[1], dim=1)
    weights = [None if dual is None else weight for dual, weight in zip(found, solved, strict=True)]
    return _ridges(penalties, weights, mean=torch.cat(means), std=torch.cat(stds), y_mean=y_mean)


def _ridges(
    penalties: Sequence[float], weights: Sequence[Tensor | None], *, mean: Tensor, std: Tensor, y_mean: Tensor
) -> list[Ridge]:
    """From weights (d, m) for standardised x to ridges for x as it came, of the penalties that were not lost."""
    unscaled = [(penalty, w / std[:, None]) for penalty, w in zip(penalties, weights, strict=True) if w is not None]
    return [Ridge(penalty, w, y_mean - mean @ w) for penalty, w in unscaled]


def _standardised(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shifted = x - x[0]
    mean = require_finite(shifted.mean(0))
    centred = shifted - mean
    std = _std(centred.square().mean(0))
    return centred / std, x[0] + mean, std


def _add_products(lower: Tensor, x: Tensor) -> None:
    """Add those of the rows of x with each other: the triangle below the diagonal, which is all that Cholesky reads."""
    for first in range(0, len(x), BLOCK):
        lower[first:, first : first + BLOCK].addmm_(x[first:], x[first : first + BLOCK].T)


def _std(variance: Tensor) -> Tensor:
    """The square root, but infinity for a column that never changes, which makes its weight exactly 0."""
    return torch.where(variance > 0, variance, torch.inf).sqrt()


def _solve_regularized(lower: Tensor, right: Tensor, shrinks: Sequence[float]) -> list[Tensor | None]:
    """(a + shrink)^-1 b for each shrink, or none where the shrink is lost in rounding; of a the lower triangle is read.

    Seven Choleskys take less time than the one eigendecomposition that would serve all.
    """
    solved: list[Tensor | None] = []
    for shrink in shrinks:
        factor = lower.clone()
        factor.diagonal().add_(shrink)
        factor, broken = torch.linalg.cholesky_ex(factor)
        solved.append(None if broken else torch.cholesky_solve(right, factor))
        del factor  # before there is another: each is as large as the sums
    return solved


def _predictions(ridges: list[Ridge], x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """The predictions of each ridge on some rows of x, which are read once."""
    joined = Ridge(0, torch.cat([ridge.weight for ridge in ridges], 1), torch.cat([ridge.bias for ridge in ridges]))
    predicted = torch.cat([joined.predict(x[part]) for part in torch.split(rows, _chunk(x.shape[1]))])
    return torch.split(predicted, len(ridges[0].bias), dim=1)


def _check(x: Tensor, y: Tensor, penalties: Sequence[float]) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not len(x):
        raise ShapeError(f"x {tuple(x.shape)} and y {tuple(y.shape)} must be (n, d) and (n, m), with n of 1 or more.")
    if not penalties or not all(penalty > 0 for penalty in penalties):
        raise AvtError(f"Penalties must be one or more numbers above 0, not {list(penalties)}.")


def _device(x: Tensor) -> torch.device:
    return torch.device("cpu") if x.device.type == "mps" else x.device  # MPS has no float64


def _chunk(width: int) -> int:
    return max(1, CHUNK_BYTES // (8 * max(1, width)))
