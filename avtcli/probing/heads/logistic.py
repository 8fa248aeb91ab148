"""Logistic regression with a penalty, the optimum of a linear classifier."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from pydantic import Field, PositiveFloat
from torch.nn.functional import cross_entropy

from avtcli.metrics.accuracy import topk_percent
from avtcli.metrics.logistic import HISTORY, fit_logistic
from avtcli.probing.head import ClosedFormHead, Head, HeadData, HeadFigures
from avtcli.runtime.devices import has_room


def logistic(
    *, penalties: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1)
) -> Head:
    """Multinomial logistic regression with an L2 penalty, solved by L-BFGS: no learning rate, schedule or seed.

    The penalty with the lowest cross-entropy on held-out training images is chosen.

    Args:
        penalties: on half of the squared weights, for each image, to choose from; scikit-learn's C is 1 / (penalty images).
    """
    description = "logistic regression with an L2 penalty by L-BFGS, features standardised"
    return ClosedFormHead(description, "max", partial(_fit, penalties=penalties), lambda *images: {"penalty": penalties})


def _fit(data: HeadData, *, penalties: Sequence[float]) -> HeadFigures:
    images, width, classes = len(data.rows), data.train.shape[1], data.classes
    # features, standardised, a copy; logits and gradients; the history of L-BFGS
    needed = 4 * (3 * images * (width + classes) + 3 * HISTORY * (width + 1) * classes)
    data.require_memory(needed, "Logistic regression")
    x = data.train if has_room(data.train.device, needed) else data.train.cpu()
    labels = data.train_labels.to(x.device)
    best, val_top1 = sorted(penalties)[len(penalties) // 2], None
    if len(penalties) > 1 and len(data.held_out):
        rows, held_out = (part.to(x.device) for part in (data.fit_rows, data.held_out))
        fitted = fit_logistic(x[rows].float(), labels[rows], penalties, classes=data.classes)
        logits = {f.penalty: f.logits(x[held_out]) for f in fitted}
        # the loss is smooth in the penalty, where the accuracy of a thousand images is noise
        best = min(logits, key=lambda penalty: cross_entropy(logits[penalty], labels[held_out]).item())
        val_top1 = topk_percent(logits[best], labels[held_out], 1)
    rows = data.rows.to(x.device)
    (final,) = fit_logistic(x[rows].float(), labels[rows], [best], classes=data.classes)
    return HeadFigures(*data.score(final.logits(data.test.to(x.device))), val_top1, {"penalty": best})
