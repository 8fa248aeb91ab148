"""Which images of a data set are trained on, and which are held out to be measured on."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from avtcli.contracts import ImageData, Split, name_hash
from avtcli.errors import AvtError
from avtcli.seeding import subset

HELD_OUT_SHARE: Final = 0.05
HELD_OUT_COUNT: Final = 1000
"""The most images that are held out of training, and that a measure of held-out images takes by default."""
_LEAST: Final = 2  # images of each part


@dataclass(frozen=True)
class Partition:
    """The images that may be trained on and those that are held out: the same in every command and for every seed.

    With a test split these are the training and the test images. Without one, `split` is the training split: held out are the
    images whose hash is below 5 % of its range, and of more than 1 000 those of the lowest hashes; at least two. The hash is
    that of the file's relative name, so that a file that is added moves no other one, as long as fewer than 1 000 are held
    out; images without file names are hashed by index. Indices are (n,) int64, sorted.
    """

    name: str  # test or held-out
    train: Tensor  # indices into the training split
    split: Split
    held_out: Tensor  # indices into `split`

    def to_monitor(self, count: int) -> Tensor:
        """Return the indices of at most `count` training images to measure a network on while it is trained.

        They are held-out ones. Where the test images are held out, which pretraining never reads, they are training images:
        the last ones that `--limit-train` would draw, and at most half of them.
        """
        if self.name == "held-out":
            return limited(self.held_out, min(count, len(self.held_out)))
        last = torch.ones(len(self.train), dtype=torch.bool)
        last[limited(self.train, len(last) - min(count, -(-len(last) // 2)))] = False
        return last.nonzero()[:, 0]


def records_of(listing: bytes) -> Iterator[bytes]:
    """Yield the record of each image of a `Split.listing`: name, NUL, facts."""
    return (found[0] for found in re.finditer(rb"[^\0]*\0[^\n]*\n", listing))


def can_hold_out(data: ImageData) -> bool:
    """Whether a data set has a test split, or enough images to hold some out."""
    return (data.test is not None and len(data.test) > 0) or len(data.train) >= 2 * _LEAST


def partition(data: ImageData) -> Partition:
    """Divide a data set into images to train on and held-out ones.

    Raises:
        AvtError: if it has no test split and fewer than four images.
    """
    everything = torch.arange(len(data.train))
    if data.test is not None and len(data.test):
        return Partition("test", everything, data.test, torch.arange(len(data.test)))
    if not can_hold_out(data):
        raise AvtError(
            f"The data set has {len(everything)} images and no test split: it needs {2 * _LEAST} or more, as {_LEAST} are held "
            "out."
        )
    hashes = _hashes(data.train)
    last = min(HELD_OUT_COUNT, len(hashes)) - 1
    low = np.flatnonzero(hashes <= np.partition(hashes, last)[last])  # sorting ten million takes seconds
    lowest = low[np.argsort(hashes[low], kind="stable")][:HELD_OUT_COUNT]
    count = max(_LEAST, int(np.count_nonzero(hashes[lowest] < HELD_OUT_SHARE * 2.0**64)))
    held = torch.zeros(len(everything), dtype=torch.bool)
    held[torch.from_numpy(lowest[:count])] = True
    return Partition("held-out", everything[~held], data.train, everything[held])


def _hashes(split: Split) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Hash each image's name as its listing states it, or its index: uint64, (n,)."""
    stored = split.name_hashes()
    if stored is not None:
        return stored
    listing = split.listing()
    if listing is None:
        keys = (str(i).encode() for i in range(len(split)))
    else:
        keys = (record.partition(b"\0")[0] for record in records_of(listing))
    hashes = bytearray()  # joined at the end, the parts of a million would take several times the memory
    for key in keys:
        hashes += name_hash(key)
    return np.frombuffer(hashes, "<u8")


def contains(indices: Tensor, searched: Tensor) -> Tensor:
    """Return which of the indices `searched`, (m,), are among others, (n,) sorted: (m,) bool; `torch.isin` sorts both."""
    return indices[torch.searchsorted(indices, searched).clamp(max=len(indices) - 1)] == searched


def limited(indices: Tensor, limit: int | None) -> Tensor:
    """Return the images to use: all, or a draw of `limit` that depends on their number alone; sorted.

    A smaller draw is part of a larger one.

    Raises:
        AvtError: if there are fewer than asked for.
    """
    if limit is not None and limit > len(indices):
        found = f"the {len(indices)} images of the split that may be trained on"
        raise AvtError(f"--limit-train {limit} is more than {found}. Leave it out for all of them.")
    return indices[subset(len(indices), limit, "limit", len(indices))]
