"""Heads that are computed from kept features rather than trained: k nearest neighbours, and ridge regression on the labels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from avtcli.config import ProbeConfig
from avtcli.core.keyed import keyed_generator
from avtcli.core.knn import nearest, vote
from avtcli.core.metrics import topk_percent
from avtcli.core.ridge import choose_ridge
from avtcli.runs.features import Feature, KeptFeatures


@dataclass(frozen=True)
class Figures:
    """What one head gives, in percent.

    Attributes:
        top1: on the test split.
        top5: likewise.
        val_top1: on the held-out part of train, which chose; none where nothing was chosen.
        chosen: what it chose, by name.
        top1_best_test_epoch: the best over epochs on test; none for a head without epochs.
    """

    top1: float
    top5: float
    val_top1: float | None
    chosen: dict[str, float]
    top1_best_test_epoch: float | None = None


def split_held_out(rows: Tensor, share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Part the training rows: those to fit on, two at least, and those held out, one at least; a draw by the seed."""
    order = rows[torch.randperm(len(rows), generator=keyed_generator(seed, "held out"))]
    held = min(max(1, round(len(order) * share)), len(order) - 2)
    return order[held:], order[:held]


def closed_head(
    config: ProbeConfig, train: KeptFeatures, test: KeptFeatures, feature: Feature, *, rows: Tensor, classes: int, seed: int
) -> Figures:
    """Choose the head's one number on held-out rows of train, then measure on test with all rows.

    Args:
        config: the settings; the head is knn or ridge.
        train: kept features of the training images.
        test: of the test images.
        feature: which of them.
        rows: to learn from, (n,) int64.
        classes: the number of classes.
        seed: of what is held out.
    """
    head = _neighbours if config.head == "knn" else _ridge
    return head(config, _Flat.of(train, feature), _Flat.of(test, feature), rows=rows, classes=classes, seed=seed)


@dataclass(frozen=True)
class _Flat:
    """One feature of all images, flattened, (n, d), and their labels; never copied, since it may lie on disk."""

    features: Tensor
    labels: Tensor

    @classmethod
    def of(cls, kept: KeptFeatures, feature: Feature) -> "_Flat":
        return cls(kept.features[feature].flatten(1), kept.labels)


def _neighbours(config: ProbeConfig, train: _Flat, test: _Flat, *, rows: Tensor, classes: int, seed: int) -> Figures:
    """Weighted k-NN by the cosine, exact; k is chosen where several are given."""
    fit, held_out = split_held_out(rows, config.held_out, seed=seed)
    sizes = sorted({min(k, len(fit)) for k in config.k})
    best, top1 = sizes[0], None
    if len(sizes) > 1:
        queries = train.features[held_out.to(train.features.device)]
        found = _votes(config, train, fit.sort().values, queries, sizes, classes=classes)
        labels = train.labels[held_out.to(train.labels.device)]
        scores = {k: topk_percent(votes, labels, 1) for k, votes in found.items()}
        best = max(scores, key=lambda k: scores[k])  # the first, so the smallest, of equals
        top1 = scores[best]
    (votes,) = _votes(config, train, rows, test.features, [best], classes=classes).values()
    return Figures(*_tops(votes, test.labels), top1, {"k": best})


def _votes(
    config: ProbeConfig, bank: _Flat, rows: Tensor, queries: Tensor, sizes: list[int], *, classes: int
) -> dict[int, Tensor]:
    """The votes for each class, (queries, classes), of each number of neighbours among rows of the bank."""
    similarities, neighbours = nearest(bank.features, queries, max(sizes), rows=rows)
    device = bank.labels.device
    labels, similarities = bank.labels[rows.to(device)[neighbours.to(device)]], similarities.to(device)
    return {k: vote(similarities[:, :k], labels[:, :k], classes, temperature=config.temperature or None) for k in sizes}


def _ridge(config: ProbeConfig, train: _Flat, test: _Flat, *, rows: Tensor, classes: int, seed: int) -> Figures:
    """Least squares on one-hot labels with a penalty, which is chosen."""
    _, held_out = split_held_out(rows, config.held_out, seed=seed)
    wanted = functional.one_hot(train.labels, classes).to(torch.float64)

    def top1(predicted: Tensor, truth: Tensor) -> float:
        return topk_percent(predicted, truth.argmax(1), 1)

    ridge, held_top1 = choose_ridge(train.features, wanted, config.penalties, held_out=held_out, rows=rows, score=top1)
    logits = ridge.predict(test.features)
    return Figures(*_tops(logits, test.labels.to(logits.device)), held_top1, {"penalty": ridge.penalty})


def _tops(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    return topk_percent(logits, labels, 1), topk_percent(logits, labels, min(5, logits.shape[1]))
