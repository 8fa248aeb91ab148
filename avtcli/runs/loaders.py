"""From a data set to batches: which images, in which order, cropped where, moved how, as one table an epoch."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from avtcli import registry
from avtcli.config import Augment, Plugin
from avtcli.contracts import ImageData, Size, Split, TransformFamily
from avtcli.core.augment import centre_crop, crop_and_flip
from avtcli.core.keyed import keyed_generator, subset
from avtcli.errors import AvtError
from avtcli.runs.images import Images, Window, resized_size
from avtcli.runs.streaming import StreamedImages

PLAIN_BATCH = 250  # images that are forwarded at once for measuring


def data_folder(data_dir: str | None) -> Path:
    """--data-dir, else $AVT_DATA, else ./data."""
    return Path(data_dir or os.environ.get("AVT_DATA") or "data")


def build_data(plugin: Plugin, data_dir: str | None) -> ImageData:
    """Open a data set.

    Raises:
        AvtError: if it is missing, not whole or empty.
    """
    data: ImageData = registry.build("dataset", plugin.name, plugin.options, data_dir=data_folder(data_dir))
    if not len(data.train):
        raise AvtError(f"The data set '{plugin.name}' has no training images.")
    return data


def limited(split: Split, limit: int | None) -> Tensor:
    """The numbers of the images to use: all, or a draw that depends on the split's length and the limit alone.

    Raises:
        AvtError: if there are fewer images than asked for.
    """
    if limit is not None and limit > len(split):
        raise AvtError(f"--limit-train {limit} asks for more images than the {len(split)} that there are.")
    return subset(len(split), limit, "limit", len(split))


def image_size(data: ImageData, augment: Augment) -> Size:
    """The (height, width) that the network sees.

    Raises:
        AvtError: if the images differ in size and no crop says otherwise, or are smaller than the crop.
    """
    size = None if data.size is None else resized_size(data.size, augment.resize)
    if augment.crop is None:
        if size is None:
            raise AvtError("The images differ in size: give `-o augment.resize=256 -o augment.crop=224`.")
        return size
    shorter = augment.resize if size is None else min(size)
    if shorter is not None and shorter < augment.crop:  # padding or not: measuring reads the middle of the image as it is
        found = f"{augment.resize} px on their shorter side" if size is None else f"{size[0]}x{size[1]} px"
        raise AvtError(f"The images are {found}, too small for augment.crop = {augment.crop}.")
    return (augment.crop, augment.crop)


def batch_bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """Where each batch of an epoch begins and ends: the partial last one is kept, a single sample joins the batch before."""
    bounds = [(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] == 1:
        bounds[-2:] = [(bounds[-2][0], count)]
    return bounds


@dataclass(frozen=True)
class EpochTable:
    """All randomness of one epoch but the encoder's noise, a row a sample.

    Attributes:
        order: the samples in the order of training, (n,) int64.
        uniforms: for crop and flip, (n, 3) float64.
        parameters: of the transformations, (n, k) float64.
        targets: normalised, (n, dof) float64.
    """

    order: Tensor
    uniforms: Tensor
    parameters: Tensor
    targets: Tensor


def draw_uniforms(seed: int, epoch: int, count: int) -> Tensor:
    """Draw one epoch's crops and flips: (count, 3) float64 in [0, 1), a row an image, as `core.augment` reads them."""
    return torch.rand(count, 3, generator=keyed_generator(seed, epoch, "crop and flip"), dtype=torch.float64)


def draw_epoch(seed: int, epoch: int, count: int, family: TransformFamily, size: Size) -> EpochTable:
    """Draw one epoch's table, each column by a generator of its own."""
    parameters = family.draw(count, size, keyed_generator(seed, epoch, "transform"))
    return EpochTable(
        order=torch.randperm(count, generator=keyed_generator(seed, epoch, "order")),
        uniforms=draw_uniforms(seed, epoch, count),
        parameters=parameters,
        targets=family.target(parameters, size),
    )


class ResidentImages(Images):
    """Images that live on the device as uint8, resized once.

    Resizing is torch's bilinear with antialiasing, within one grey level of Pillow's, which streamed images get.

    Args:
        split: one with all its images in one tensor.
        numbers: which of them, (n,) int64.
        device: where they are to live.
        shorter: the shorter side after resizing, or none.
    """

    def __init__(self, split: Split, numbers: Tensor, *, device: torch.device, shorter: int | None = None) -> None:
        assert split.images is not None
        everything = len(numbers) == len(split)
        images = split.images if everything else split.images[numbers]
        self.images = _resize_all(images, shorter).to(device)

    def __len__(self) -> int:
        return len(self.images)

    def read_batches(self, batches: Sequence[Tensor], window: Window, uniforms: Tensor | None = None) -> Iterator[Tensor]:
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


def build_images(split: Split, numbers: Tensor, *, device: torch.device, shorter: int | None, workers: int) -> Images:
    """Images to read in batches: on the device where they fit in memory, else streamed.

    Args:
        split: the images.
        numbers: which of them, (n,) int64.
        device: where the batches go.
        shorter: `augment.resize`, the shorter side after resizing, or none.
        workers: processes that read streamed images (see `streaming.choose_workers`).
    """
    if split.images is not None:
        return ResidentImages(split, numbers, device=device, shorter=shorter)
    return StreamedImages(split, numbers, device=device, shorter=shorter, workers=workers)


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
    return images.read_batches(batches, Window(size, padding=augment.padding, flip=augment.flip), table.uniforms)


def plain_batches(images: Images, batches: Sequence[Tensor], size: Size) -> Iterator[Tensor]:
    """Read batches of rows for measuring: the middle of each image after resizing, uint8 (B, C, *size), on the device."""
    return images.read_batches(batches, Window(size))
