"""Exact nearest neighbours and their weighted vote."""

import math

import torch
from torch import Tensor

from avtcli.errors import AvtError, ShapeError
from avtcli.metrics.feature_statistics import require_finite

BLOCK_BYTES = 2**26
"""Upper bound of a block of the bank, of the queries and of their similarities each; four of them are alive at once."""


def nearest(bank: Tensor, queries: Tensor, k: int, *, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the k rows of the bank with the largest cosine to each query, by exhaustive search.

    The bank is read once, block by block, and may be memory-mapped. Computed in float32, in float64 where both inputs are, on
    the device of the queries.

    Args:
        bank: (m, d).
        queries: (n, d).
        k: neighbours, 1 to m.
        rows: rows of the bank to search, (m',) int64; neighbours are then indices into `rows`.

    Returns:
        Cosines (n, k), descending, 0 of a row of zeros; and rows of the bank (n, k), int64. Among equal cosines the smaller
        row comes first, also at the k-th place.

    Raises:
        ShapeError: if bank and queries differ in their columns.
        AvtError: if there are fewer than k rows, or if a feature is not finite.
    """
    count = len(bank) if rows is None else len(rows)
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise ShapeError(f"Bank {tuple(bank.shape)} and queries {tuple(queries.shape)} must be (m, d) and (n, d).")
    if not 1 <= k <= count:
        raise AvtError(f"Cannot find {k} neighbours among {count} samples; ask for 1 to {count}.")
    dtype = torch.promote_types(torch.promote_types(bank.dtype, queries.dtype), torch.float32)
    bank_step = max(1, BLOCK_BYTES // (dtype.itemsize * bank.shape[1]))
    query_step = max(1, min(bank_step, BLOCK_BYTES // (dtype.itemsize * min(bank_step, count))))
    values = torch.full((len(queries), k), -math.inf, dtype=dtype, device=queries.device)
    found = torch.zeros_like(values, dtype=torch.int64)
    for start in range(0, count, bank_step):
        stop = start + bank_step
        selected = bank[start:stop] if rows is None else bank[rows[start:stop].to(bank.device)]
        block = _unit(selected.to(queries.device, dtype))
        for first in range(0, len(queries), query_step):
            part = slice(first, first + query_step)
            candidates = torch.cat([values[part], _unit(queries[part].to(dtype)) @ block.T], 1)  # earlier rows first
            columns = _largest(candidates, k)
            values[part] = candidates.gather(1, columns)
            found[part] = torch.where(columns < k, found[part].gather(1, columns.clamp(max=k - 1)), columns - k + start)
    return values, found


def vote(similarities: Tensor, labels: Tensor, classes: int, *, temperature: float | None) -> Tensor:
    """Sum the votes of the neighbours for each class.

    A neighbour's vote weighs exp(similarity / temperature): Wu et al., "Unsupervised feature learning via non-parametric
    instance discrimination" (2018), section 3.4. The weights of a query are divided by that of its nearest neighbour, so
    that small temperatures do not overflow; the ranking does not change.

    Args:
        similarities: (n, k).
        labels: classes of the neighbours, (n, k) int64.
        classes: number of classes.
        temperature: above 0; none gives every neighbour one vote.

    Returns:
        (n, classes), in the dtype of the similarities; -inf for a class without a neighbour, so that it is never a hit.

    Raises:
        AvtError: if the temperature is not above 0, or a label is not from 0 to classes - 1.
    """
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise AvtError(f"Labels must be from 0 to {classes - 1}, found {int(labels.min())} to {int(labels.max())}.")
    weights = torch.ones_like(similarities)
    if temperature is not None:
        if not temperature > 0:
            raise AvtError(f"A temperature must be above 0, not {temperature}. 0.07 is usual; none gives equal votes.")
        weights = ((similarities - similarities.amax(1, keepdim=True)) / temperature).exp()
    votes = similarities.new_full((len(similarities), classes), -math.inf).scatter_(1, labels, 0.0)
    query = torch.arange(len(votes), device=votes.device)
    for label, weight in zip(labels.unbind(1), weights.unbind(1), strict=True):  # in order: the same sums on every device
        votes[query, label] += weight
    return votes


def _unit(rows: Tensor) -> Tensor:
    norms = require_finite(torch.linalg.vector_norm(rows, dim=1, keepdim=True))
    return rows / torch.where(norms > 0, norms, 1)


def _largest(values: Tensor, k: int) -> Tensor:
    """Columns of the k largest of each row, descending, the first of equals first, which `topk` leaves open."""
    top, columns = values.topk(k + 1, dim=1)
    tied = (top[:, 1:] == top[:, :-1]).any(1).nonzero()[:, 0]
    columns[tied, :k] = values[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return columns[:, :k]
