"""Heads that are computed from kept features rather than trained: k nearest neighbours, and ridge regression on the labels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from avtcli.config.probe_config import ProbeConfig
from avtcli.errors import AvtError
from avtcli.features.cache_storage import memory_bytes
from avtcli.features.feature_cache import CachedFeatures
from avtcli.features.feature_reader import Feature
from avtcli.metrics.accuracy import topk_percent
from avtcli.metrics.knn import nearest, vote
from avtcli.metrics.ridge import choose_ridge, fit_ridges
from avtcli.probing.probe_setup import Figures, split_held_out


def closed_form_head(
    config: ProbeConfig, train: CachedFeatures, test: CachedFeatures, feature: Feature, *, rows: Tensor, classes: int, seed: int
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
    def of(cls, kept: CachedFeatures, feature: Feature) -> "_Flat":
        return cls(kept.features[feature].movedim(1, -1).flatten(1), kept.labels)  # as they lie in memory


def _neighbours(config: ProbeConfig, train: _Flat, test: _Flat, *, rows: Tensor, classes: int, seed: int) -> Figures:
    """Weighted k-NN by the cosine, exact; k is chosen where several are given."""
    fit, held_out = split_held_out(rows, train.labels, config.held_out, seed=seed)
    choice = len(config.neighbours) > 1 and len(held_out) > 0
    sizes = sorted({min(k, len(fit if choice else rows)) for k in config.neighbours})
    best, top1 = sizes[len(sizes) // 2], None
    if choice:
        queries = train.features[held_out.to(train.features.device)]
        found = _votes(config, train, fit, queries, sizes, classes=classes)
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
    _, held_out = split_held_out(rows, train.labels, config.held_out, seed=seed)
    _check_memory(len(rows), train.features.shape[1], classes)
    wanted = functional.one_hot(train.labels.cpu(), classes).to(torch.float64)

    def top1(predicted: Tensor, truth: Tensor) -> float:
        return topk_percent(predicted, truth.argmax(1), 1)

    top: float | None = None
    if len(config.penalties) > 1 and len(held_out):
        ridge, top = choose_ridge(train.features, wanted, config.penalties, held_out=held_out, rows=rows, score=top1)
    else:
        ridge = fit_ridges(train.features, wanted, [sorted(config.penalties)[len(config.penalties) // 2]], rows=rows)[0]
    logits = ridge.predict(test.features)
    return Figures(*_tops(logits, test.labels.to(logits.device)), top, {"penalty": ridge.penalty})


def _check_memory(count: int, width: int, classes: int) -> None:
    """Refuse what would fill the memory: the products of features or of images with each other, and the labels, in float64.

    Raises:
        AvtError: with what to give instead.
    """
    needed, there = 8 * (5 * min(width, count) ** 2 + 3 * count * classes), memory_bytes()
    if needed > there / 2:
        raise AvtError(
            f"Ridge on {count} images of {width} numbers and {classes} classes would take {needed / 1e9:.0f} GB, more than "
            f"half of the {there / 1e9:.0f} GB of memory. Give a smaller --pool-size or --limit-train, or --head linear."
        )


def _tops(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    return topk_percent(logits, labels, 1), topk_percent(logits, labels, min(5, logits.shape[1]))
