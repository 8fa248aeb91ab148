"""Images that are held out for evaluation."""

import torch
from torch import Tensor

from avtcli.contracts import ImageData, Split
from avtcli.data.datasets import limited

MACE_COUNT = 1000
"""Held-out images that a run's corner error is measured on."""


def held_out_split(data: ImageData) -> tuple[str, Split]:
    """Return the split to evaluate on, with its name: test, or train without a test split."""
    return ("train", data.train) if data.test is None or not len(data.test) else ("test", data.test)


def held_out_indices(data: ImageData, count: int) -> Tensor:
    """Return at most `count` held-out indices; of a training split the last ones drawn, which limited runs never saw."""
    name, split = held_out_split(data)
    if name == "test":
        return limited(split, min(count, len(split)))
    seen = limited(split, max(0, len(split) - count))
    unseen = torch.ones(len(split), dtype=torch.bool)
    unseen[seen] = False
    return unseen.nonzero()[:, 0]
