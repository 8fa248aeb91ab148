"""Figures of merit, each with its definition."""

import torch
from torch import Tensor

from avtcli.core.homography import corners_of, map_points


def corner_error(true_in_from_out: Tensor, decoded_in_from_out: Tensor, size: tuple[int, int]) -> Tensor:
    """The mean distance between the corners of the moved image mapped by the true and by the decoded matrix.

    Averaged over samples it is MACE, the mean average corner error. No inverse is taken, so that it is finite for the
    constant predictor too.

    Args:
        true_in_from_out: (n, 3, 3).
        decoded_in_from_out: (n, 3, 3).
        size: (height, width) of the images.

    Returns:
        (n,), pixels.
    """
    corners = corners_of(size).to(true_in_from_out)
    difference = map_points(true_in_from_out, corners) - map_points(decoded_in_from_out, corners)
    return difference.square().sum(-1).sqrt().mean(-1)


def topk_percent(logits: Tensor, labels: Tensor, k: int) -> float:
    """The percentage of samples whose label is among the k largest logits; equal logits count in the classes' order.

    Args:
        logits: (n, classes).
        labels: (n,) int64.
        k: how many guesses count; no more than there are classes.
    """
    ranked = logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return 100 * (ranked == labels[:, None]).any(1).to(torch.float64).mean().item()
