"""Weighted k nearest neighbours."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from avtcli.metrics.accuracy import topk_percent
from avtcli.metrics.knn import nearest, vote
from avtcli.probing.head import ClosedFormHead, Head, HeadData, HeadFigures


def knn(
    *, k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (5, 10, 20, 50, 100), temperature: NonNegativeFloat = 0.07
) -> Head:
    """Exact nearest neighbours by cosine similarity.

    Args:
        k: numbers of neighbours to choose from.
        temperature: a neighbour's vote is exp(cosine / temperature); 0 gives each neighbour one vote.
    """
    fit = partial(_fit, sizes=k, temperature=temperature or None)
    return ClosedFormHead(
        "k nearest neighbours by cosine similarity, exact, weighted votes",
        "max",
        fit,
        lambda *images: {"k": _sizes(k, *images)},
    )


def _sizes(k: Sequence[int], to_fit: int, images: int) -> list[int]:
    """The numbers of neighbours, ascending, each at most that of the images; see `ClosedFormHead.candidates`."""
    return sorted({min(size, to_fit if len(k) > 1 else images) for size in k})


def _fit(data: HeadData, *, sizes: Sequence[int], temperature: float | None) -> HeadFigures:
    sizes = _sizes(sizes, len(data.fit_rows), len(data.rows))
    choose = len(sizes) > 1 and len(data.held_out) > 0
    best, val_top1 = sizes[len(sizes) // 2], None
    if choose:
        queries = data.train[data.held_out.to(data.train.device)]
        labels = data.train_labels[data.held_out.to(data.train_labels.device)]
        votes = _votes(data, data.fit_rows, queries, sizes, temperature=temperature)
        scores = {k: topk_percent(votes[k], labels, 1) for k in sizes}
        best = max(scores, key=lambda k: scores[k])  # the smallest of equal ones
        val_top1 = scores[best]
    votes = _votes(data, data.rows, data.test, [best], temperature=temperature)
    return HeadFigures(*data.score(votes[best]), val_top1, {"k": best})


def _votes(
    data: HeadData, rows: Tensor, queries: Tensor, sizes: Sequence[int], *, temperature: float | None
) -> dict[int, Tensor]:
    similarities, neighbours = nearest(data.train, queries, max(sizes), rows=rows)
    device = data.train_labels.device
    labels, similarities = data.train_labels[rows.to(device)[neighbours.to(device)]], similarities.to(device)
    return {k: vote(similarities[:, :k], labels[:, :k], data.classes, temperature=temperature) for k in sizes}
