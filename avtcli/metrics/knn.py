"""Exact nearest neighbours, and the vote they hold."""

from typing import Literal

import torch
from torch import Tensor

from avtcli.errors import AvtError, ShapeError
from avtcli.metrics.feature_statistics import require_finite

Metric = Literal["cosine", "euclidean"]

BLOCK_BYTES = 2**26
"""How large a block of the bank, of the queries and of their similarities may each be; four of them live at once."""


def nearest(
    bank: Tensor, queries: Tensor, k: int, *, rows: Tensor | None = None, metric: Metric = "cosine"
) -> tuple[Tensor, Tensor]:
    """Find the k rows of the bank that are most similar to each query.

    Every pair is compared. The bank is read once, block by block, and may be memory-mapped; the work is done in float32, in
    float64 where both are, on the device of the queries.

    Args:
        bank: (m, d).
        queries: (n, d).
        k: how many neighbours; 1 to m.
        rows: of the bank, (m',) int64, to search alone; k is then 1 to m', and neighbours are counted among them.
        metric: `cosine`, where a row of zeros is similar to nothing (0), or `euclidean`.

    Returns:
        Similarities (n, k), descending: the cosine, or minus the squared distance; and rows of the bank (n, k), int64. Of
        equal similarities the smaller row comes first, at the k-th place too.

    Raises:
        ShapeError: if bank and queries differ in their columns.
        AvtError: if there are fewer than k rows, or if a feature is not finite.
    """
    count = len(bank) if rows is None else len(rows)
    _check(bank, queries, k, count)
    dtype = torch.promote_types(torch.promote_types(bank.dtype, queries.dtype), torch.float32)
    origin = bank[:1].to(queries.device, dtype)
    width = bank.shape[1] * dtype.itemsize
    bank_rows = _rows_of(width)
    query_rows = min(_rows_of(width), _rows_of(min(bank_rows, count) * dtype.itemsize))

    found = [_none_yet(part, dtype) for part in torch.split(queries, query_rows)]
    for start in range(0, count, bank_rows):
        stop = start + bank_rows
        picked = bank[start:stop] if rows is None else bank[rows[start:stop].to(bank.device)]
        block = _prepared(picked.to(queries.device, dtype), origin, metric)
        for i, part in enumerate(torch.split(queries, query_rows)):
            similarities = _similarities(_prepared(part.to(dtype), origin, metric), block, metric)
            values, places = _largest(similarities, min(k, len(block)))
            found[i] = _merged(found[i], (values, places + start), k)
    return torch.cat([values for values, _ in found]), torch.cat([rows for _, rows in found])


def vote(similarities: Tensor, labels: Tensor, classes: int, *, temperature: float | None) -> Tensor:
    """Let the neighbours vote for their classes.

    A neighbour's vote weighs exp(similarity / temperature): Wu et al., "Unsupervised feature learning via non-parametric
    instance discrimination" (2018), section 3.4. The weights of a query are divided by that of its nearest neighbour, so
    that no temperature is too small; the ranking does not change.

    Args:
        similarities: (n, k).
        labels: of the neighbours, (n, k) int64, 0 to classes - 1.
        classes: how many there are.
        temperature: above 0; none gives every neighbour one vote.

    Returns:
        (n, classes), the sums of the votes in the dtype of the similarities.

    Raises:
        AvtError: if the temperature is not above 0.
    """
    weights = torch.ones_like(similarities)
    if temperature is not None:
        if not temperature > 0:
            raise AvtError(f"A temperature must be above 0, not {temperature}. 0.07 is usual; none gives equal votes.")
        weights = ((similarities - similarities.amax(1, keepdim=True)) / temperature).exp()
    votes = similarities.new_zeros(len(similarities), classes)
    query = torch.arange(len(votes), device=votes.device)
    for label, weight in zip(labels.unbind(1), weights.unbind(1), strict=True):  # in order: the same sums on every device
        votes[query, label] += weight
    return votes


def _check(bank: Tensor, queries: Tensor, k: int, count: int) -> None:
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise ShapeError(f"Bank {tuple(bank.shape)} and queries {tuple(queries.shape)} must be (m, d) and (n, d).")
    if not 1 <= k <= count:
        raise AvtError(f"{k} neighbours were asked of {count} samples; ask for 1 to {count}.")


def _rows_of(row_bytes: int) -> int:
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def _none_yet(queries: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    empty = torch.empty(len(queries), 0, device=queries.device, dtype=dtype)
    return empty, empty.to(torch.int64)


def _prepared(rows: Tensor, origin: Tensor, metric: Metric) -> Tensor:
    """Unit rows for the cosine; for distances rows seen from a point among them, so that squares lose few digits."""
    norms = require_finite(torch.linalg.vector_norm(rows, dim=1, keepdim=True))
    if metric == "euclidean":
        return rows - origin
    return rows / torch.where(norms > 0, norms, 1)


def _similarities(queries: Tensor, bank: Tensor, metric: Metric) -> Tensor:
    """(n, d), (m, d) -> (n, m): q b for unit rows, or -|q - b|^2 = 2 q b - |b|^2 - |q|^2, in place."""
    products = queries @ bank.T
    if metric == "euclidean":
        products.mul_(2).sub_(bank.square().sum(1)).sub_(queries.square().sum(1, keepdim=True)).clamp_(max=0)
    return products


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, descending, the first of equals first, which `topk` leaves open."""
    top, columns = values.topk(min(k + 1, values.shape[1]), dim=1)
    if top.shape[1] > k:
        cut = (top[:, k - 1] == top[:, k]).nonzero()[:, 0]
        order = values[cut].sort(dim=1, descending=True, stable=True).indices[:, :k]
        columns = columns[:, :k].index_copy(0, cut, order)
    columns = columns.sort(dim=1).values
    return _ordered(values.gather(1, columns), columns, k)


def _merged(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k largest of two, where every row of the first comes before every row of the second."""
    return _ordered(torch.cat([first[0], second[0]], 1), torch.cat([first[1], second[1]], 1), k)


def _ordered(values: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    ordered = values.sort(dim=1, descending=True, stable=True)
    return ordered.values[:, :k], columns.gather(1, ordered.indices[:, :k])
