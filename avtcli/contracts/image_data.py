"""The contract of a data set. Shapes: n images, C channels, H rows, W columns."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from avtcli.contracts.transform_families import Size


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
        """Image i, uint8 (C, H, W)."""

    @abstractmethod
    def name(self, i: int) -> str:
        """What image i is called, for messages and embeddings."""


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
    channels: int
    size: Size | None
    """(height, width) of every image, or none where they differ."""
    mean: tuple[float, ...]
    """Per channel, of images in [0, 1]."""
    std: tuple[float, ...]
    classes: tuple[str, ...] | None
    fingerprint: str
    """Changes when the data does: a hash of what the files say of themselves."""
