"""Top-k accuracy."""

import math

from torch import Tensor


def topk_percent(logits: Tensor, labels: Tensor, k: int) -> float:
    """The percentage of samples whose label is among the k largest logits; see `topk_hits`."""
    return 100 * int(topk_hits(logits, labels, k)) / len(labels)


def topk_hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Count the samples whose label is among the k largest logits; equal logits rank in the order of the classes.

    Args:
        logits: (..., n, classes); a class at -inf or NaN is never a hit.
        labels: (n,) int64.
        k: at most the number of classes.

    Returns:
        (...) int64, on the device of the logits, which is not waited for.
    """
    ranked = logits.sort(dim=-1, descending=True, stable=True)
    hits = (ranked.indices == labels[:, None]) & (ranked.values > -math.inf)
    return hits[..., :k].any(-1).sum(-1)
