"""The contract of a data set. Shapes: n images, C channels, H rows, W columns."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from avtcli.contracts.transform_families import Size

MAX_PIXELS: Final = 50_000_000
"""The most pixels of an image, stored or resized; a larger one is refused before memory is allocated for it."""

Notify = Callable[[str], None]
"""Takes a line of text for the user, such as what is downloaded."""


def name_hash(name: bytes) -> bytes:
    """The hash by which images are held out and found, 8 bytes, of the name that a listing states."""
    return blake2b(name, digest_size=8).digest()


class Split(ABC):
    """One part of a data set: images by their number."""

    labels: Tensor | None
    """(n,) int64, or none."""
    images: Tensor | None
    """All images as one uint8 tensor (n, C, H, W) where that is small, else none."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, i: int) -> Tensor:
        """Image i, uint8 (C, H, W).

        Raises:
            AvtError: naming the image, if it cannot be read or does not decode. Pretraining replaces it by another one.
        """

    @abstractmethod
    def name(self, i: int) -> str:
        """What image i is called, for messages and embeddings."""

    def find(self, names: Collection[str]) -> Iterator[tuple[int, str]]:
        """Yield index and name of the images that have one of these names."""
        return ((i, name) for i in range(len(self)) if (name := self.name(i)) in names)

    def describe(self, i: int) -> str | None:
        """How image i is stored, such as `PNG RGBA`, from its header; none where that says nothing. Raises as `read`."""
        return None

    def resized(self, shorter: int) -> "Split":
        """Return the split for a reader that resizes each image to a shorter side of `shorter` pixels.

        Where it is faster, the images may be smaller than they are stored, but no side below twice that.
        """
        return self

    def listing(self) -> bytes | None:
        r"""What the split states of its images, in order: `NAME\0FACTS\n` each; none where it is no list of files.

        NAME is `os.fsencode(name(i))`; FACTS, without a line break, is what the fingerprint depends on, such as size and label.
        A run keeps the listing, so that a file that cannot be used may change or vanish while the run goes on. In a data set
        without a test split a hash of NAME decides whether the image is held out, so it is relative to the data set's folder.
        """
        return None

    def name_hashes(self) -> NDArray[np.uint64] | None:
        """(n,): the `name_hash` of each image's NAME, see `listing`, little-endian, where the split has them; else none."""
        return None

    def with_listing(self, listing: bytes) -> "Split":
        """Return the split as it was when it gave this listing: the same images by the same numbers, present or not."""
        raise NotImplementedError


class MemorySplit(Split):
    """A part whose images all lie in memory.

    Args:
        images: uint8, (n, C, H, W).
        labels: int64, (n,), or none.
        prefix: names are `prefix/i`.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, *, prefix: str) -> None:
        self.images: Tensor = images
        self.labels = labels
        self.prefix = prefix

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> Tensor:
        """Image i, uint8 (C, H, W)."""
        return self.images[i]

    def name(self, i: int) -> str:
        """`prefix/i`."""
        return f"{self.prefix}/{i}"


@dataclass(frozen=True)
class ImageData:
    """A data set. Resize, padding and crop belong to the recipe."""

    train: Split
    test: Split | None
    """None: a part of the training images is held out instead, see `data.held_out`."""
    channels: int
    size: Size | None
    """(height, width) of every image, or none where they differ."""
    mean: tuple[float, ...]
    """Per channel, of images in [0, 1]."""
    std: tuple[float, ...]
    classes: tuple[str, ...] | None
    fingerprint: str
    """Changes when the data does: a hash of what the files say of themselves."""
    unlabelled: Split | None = None
    """Images that pretraining takes instead of `train`; probes and evaluations take `train`."""
    typical_side: int | None = None
    """The median shorter side of a sample of the images, where they differ in size and a sample was read."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Options of the data set that were chosen from the images; a run stores them, so that they stay."""
    notes: tuple[str, ...] = ()
    """What a user must know of how the files were understood, such as where labels come from."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many files were left out, by reason or by suffix."""
    complete: "Callable[[Tensor], ImageData] | None" = None
    """Where channels, mean and std are to be chosen from the images: returns the data set with those of a sample.

    It takes the indices of training images that may be looked at, (n,) int64: held-out images decide nothing.
    """
