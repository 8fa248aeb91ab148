"""Images by row, and what is cut out of one: the shorter side resized, a window, perhaps flipped."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from avtcli.contracts import Size
from avtcli.errors import AvtError
from avtcli.geometry.cropping import centre_crop


@dataclass(frozen=True)
class CropSpec:
    """What is cut out of each image.

    Attributes:
        size: (height, width).
        padding: black pixels added on each side before a random cut.
        flip: whether to mirror at all.
    """

    size: Size
    padding: int = 0
    flip: bool = False


class Images(ABC):
    """Images by row, read in batches."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read_batches(self, batches: Sequence[Tensor], window: CropSpec, uniforms: Tensor | None = None) -> Iterator[Tensor]:
        """Read batches in their order.

        Args:
            batches: rows, (B,) int64 each.
            window: what is cut out of each image.
            uniforms: (n, 3) float64 in [0, 1), a row an image: top, left, and flipped where below one half; none for the
                middle.

        Yields:
            uint8 (B, C, *window.size), on the device.
        """


def resized_size(size: Size, shorter: int | None) -> Size:
    """The (height, width) after the shorter side becomes `shorter`; the longer one is rounded down, as torchvision does."""
    if shorter is None:
        return size
    longer = int(shorter * max(size) / min(size))
    return (shorter, longer) if size[0] <= size[1] else (longer, shorter)


def resize(image: Tensor, shorter: int | None) -> Tensor:
    """Resize one uint8 image (C, H, W) by its shorter side, with Pillow's bilinear filter, channel by channel or as RGB."""
    size = (image.shape[-2], image.shape[-1])
    height, width = resized_size(size, shorter)
    if size == (height, width):
        return image
    bands = [image.permute(1, 2, 0)] if len(image) == 3 else list(image)
    out = [np.array(Image.fromarray(b.numpy()).resize((width, height), Image.Resampling.BILINEAR)) for b in bands]
    return torch.from_numpy(out[0]).permute(2, 0, 1) if len(image) == 3 else torch.from_numpy(np.stack(out))


def cut(image: Tensor, window: CropSpec, uniforms: list[float] | None, *, name: str) -> Tensor:
    """Cut the window out of one image, (C, H, W) -> (C, *window.size), as `core.augment` does out of each of a batch.

    Slices: for one image they take a tenth of the time of the indices that cut a batch.

    Raises:
        AvtError: naming the image, if it is smaller than the window.
    """
    image = functional.pad(image, [window.padding] * 4) if window.padding and uniforms is not None else image
    room = [image.shape[-2] - window.size[0], image.shape[-1] - window.size[1]]
    if min(room) < 0:
        raise AvtError(
            f"{name} is {image.shape[-2]}x{image.shape[-1]} px before the crop, smaller than its {window.size[0]}x"
            f"{window.size[1]} px: give `-o augment.resize={max(window.size)}` or more, or a smaller `-o augment.crop`."
        )
    if uniforms is None:
        return centre_crop(image, crop=window.size)
    top, left = (int(u * (r + 1)) for u, r in zip(uniforms[:2], room, strict=True))
    image = image[:, top : top + window.size[0], left : left + window.size[1]]
    return image.flip(-1) if window.flip and uniforms[2] < 0.5 else image
