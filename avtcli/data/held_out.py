"""Which images are held out for measuring."""

import torch
from torch import Tensor

from avtcli.contracts import ImageData, Split
from avtcli.data.datasets import limited

MACE_COUNT = 1000


def held_out_split(data: ImageData) -> tuple[str, Split]:
    """The split to measure on, by name: test, or train where there is no test split."""
    return ("train", data.train) if data.test is None or not len(data.test) else ("test", data.test)


def held_out_indices(data: ImageData, count: int) -> Tensor:
    """The indices of so many held-out images, or of all: of a training split the last drawn, which limited runs never saw."""
    name, split = held_out_split(data)
    if name == "test":
        return limited(split, min(count, len(split)))
    seen = limited(split, max(0, len(split) - count))
    unseen = torch.ones(len(split), dtype=torch.bool)
    unseen[seen] = False
    return unseen.nonzero()[:, 0]
