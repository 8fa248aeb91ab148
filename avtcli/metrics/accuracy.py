"""Top-k accuracy."""

from torch import Tensor


def topk_percent(logits: Tensor, labels: Tensor, k: int) -> float:
    """The percentage of samples whose label is among the k largest logits; see `topk_hits`."""
    return 100 * topk_hits(logits, labels, k) / len(labels)


def topk_hits(logits: Tensor, labels: Tensor, k: int) -> int:
    """How many samples' label is among the k largest logits; equal logits count in the classes' order.

    Args:
        logits: (n, classes).
        labels: (n,) int64.
        k: how many guesses count; no more than there are classes.
    """
    ranked = logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return int((ranked == labels[:, None]).any(1).sum())
