"""Ridge regression on one-hot labels."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional

from avtcli.metrics.accuracy import topk_percent
from avtcli.metrics.ridge import choose_ridge, fit_ridges
from avtcli.probing.head import ClosedFormHead, Head, HeadData, HeadFigures


def ridge(
    *, penalties: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
) -> Head:
    """Least squares with a penalty, in closed form.

    Args:
        penalties: on the squared weights, for each image, to choose from.
    """
    description = "ridge regression on one-hot labels in closed form, features standardised"
    return ClosedFormHead(description, "max", partial(_fit, penalties=penalties), lambda *images: {"penalty": penalties})


def _fit(data: HeadData, *, penalties: Sequence[float]) -> HeadFigures:
    count, width, classes = len(data.rows), data.train.shape[1], data.classes
    data.require_memory(8 * (5 * min(width, count) ** 2 + 3 * count * classes), "Ridge regression")  # the float64 matrices
    targets = functional.one_hot(data.train_labels.cpu(), classes).to(torch.float64)

    def top1(predicted: Tensor, truth: Tensor) -> float:
        return topk_percent(predicted, truth.argmax(1), 1)

    val_top1: float | None = None
    if len(penalties) > 1 and len(data.held_out):
        fitted, val_top1 = choose_ridge(data.train, targets, penalties, held_out=data.held_out, rows=data.rows, score=top1)
    else:
        (fitted,) = fit_ridges(data.train, targets, [sorted(penalties)[len(penalties) // 2]], rows=data.rows)
    return HeadFigures(*data.score(fitted.predict(data.test)), val_top1, {"penalty": fitted.penalty})
