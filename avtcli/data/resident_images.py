"""Images in batches: those that fit in memory live on the device."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from avtcli.config.components import Augment
from avtcli.contracts import Size, Split
from avtcli.data.epoch_table import EpochTable
from avtcli.data.images import CropSpec, Images, resized_size
from avtcli.data.streaming import StreamedImages
from avtcli.geometry.cropping import centre_crop, crop_and_flip

EVAL_BATCH_SIZE = 250  # images that are forwarded at once for measuring


class ResidentImages(Images):
    """Images that live on the device as uint8, resized once.

    Resizing is torch's bilinear with antialiasing, within one grey level of Pillow's, which streamed images get.

    Args:
        split: one with all its images in one tensor.
        indices: which of them, (n,) int64.
        device: where they are to live.
        shorter: the shorter side after resizing, or none.
    """

    def __init__(self, split: Split, indices: Tensor, *, device: torch.device, shorter: int | None = None) -> None:
        assert split.images is not None
        everything = len(indices) == len(split)
        images = split.images if everything else split.images[indices]
        self.images = _resize_all(images, shorter).to(device)

    def __len__(self) -> int:
        return len(self.images)

    def read_batches(self, batches: Sequence[Tensor], window: CropSpec, uniforms: Tensor | None = None) -> Iterator[Tensor]:
        """Cut batches out in their order, each when it is asked for; see `Images`."""
        for rows in batches:
            batch = self.images.index_select(0, rows.to(self.images.device))
            if uniforms is None:
                yield centre_crop(batch, crop=window.size)
            elif not window.flip and not window.padding and tuple(batch.shape[-2:]) == window.size:
                yield batch
            else:
                yield crop_and_flip(batch, uniforms[rows], crop=window.size, padding=window.padding, flip=window.flip)


def _resize_all(images: Tensor, shorter: int | None) -> Tensor:
    before = (images.shape[-2], images.shape[-1])
    size = resized_size(before, shorter)
    if size == before:
        return images
    out = images.new_empty(*images.shape[:2], *size)
    for first in range(0, len(images), 1000):  # a part at a time: no second copy of the whole
        part = slice(first, first + 1000)
        out[part] = functional.interpolate(images[part], size, mode="bilinear", antialias=True)
    return out


def build_images(split: Split, indices: Tensor, *, device: torch.device, shorter: int | None, workers: int) -> Images:
    """Images to read in batches: on the device where they fit in memory, else streamed.

    Args:
        split: the images.
        indices: which of them, (n,) int64.
        device: where the batches go.
        shorter: `augment.resize`, the shorter side after resizing, or none.
        workers: processes that read streamed images (see `streaming.choose_workers`).
    """
    if split.images is not None:
        return ResidentImages(split, indices, device=device, shorter=shorter)
    return StreamedImages(split, indices, device=device, shorter=shorter, workers=workers)


def training_batches(
    images: Images, batches: Sequence[Tensor], table: EpochTable, augment: Augment, size: Size
) -> Iterator[Tensor]:
    """Read the batches that are left of an epoch, resized, cropped and flipped as the table says.

    Args:
        images: the images.
        batches: rows, (B,) int64 each, in the order of training; streamed images are read ahead, so give all at once.
        table: of the epoch.
        augment: padding and flip; resizing is the images' affair.
        size: (height, width) of the crop.

    Yields:
        uint8 (B, C, *size), on the device.
    """
    return images.read_batches(batches, CropSpec(size, padding=augment.padding, flip=augment.flip), table.uniforms)


def evaluation_batches(images: Images, batches: Sequence[Tensor], size: Size) -> Iterator[Tensor]:
    """Read batches of rows for measuring: the middle of each image after resizing, uint8 (B, C, *size), on the device."""
    return images.read_batches(batches, CropSpec(size))
