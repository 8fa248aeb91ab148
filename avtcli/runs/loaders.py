"""From a data set to batches: which images, in which order, cropped where, moved how, as one table an epoch."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from avtcli import registry
from avtcli.config import Augment, Plugin
from avtcli.contracts import ImageData, Size, Split, TransformFamily
from avtcli.core.augment import centre_crop, crop_and_flip
from avtcli.core.keyed import keyed_generator, subset
from avtcli.errors import AvtError


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
    if augment.crop is None:
        if data.size is None:
            raise AvtError("The images differ in size: give `-o augment.resize=256 -o augment.crop=224`.")
        return data.size
    if data.size is not None and augment.resize is None and min(data.size) + 2 * augment.padding < augment.crop:
        raise AvtError(f"The images are {data.size[0]}x{data.size[1]} px, too small for augment.crop = {augment.crop}.")
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


def draw_epoch(seed: int, epoch: int, count: int, family: TransformFamily, size: Size) -> EpochTable:
    """Draw one epoch's table, each column by a generator of its own."""
    parameters = family.draw(count, size, keyed_generator(seed, epoch, "transform"))
    return EpochTable(
        order=torch.randperm(count, generator=keyed_generator(seed, epoch, "order")),
        uniforms=torch.rand(count, 3, generator=keyed_generator(seed, epoch, "crop and flip"), dtype=torch.float64),
        parameters=parameters,
        targets=family.target(parameters, size),
    )


class ResidentImages:
    """Images that live on the device as uint8.

    Args:
        split: one with all its images in one tensor.
        numbers: which of them, (n,) int64.
        device: where they are to live.
    """

    def __init__(self, split: Split, numbers: Tensor, *, device: torch.device) -> None:
        if split.images is None:
            raise AvtError("This data set does not fit in memory, and streaming it is not supported yet.")
        everything = len(numbers) == len(split)
        self.images = (split.images if everything else split.images[numbers]).to(device)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Tensor) -> Tensor:
        """Images by row, uint8 (B, C, H, W), on the device."""
        return self.images[rows.to(self.images.device)]


def training_images(images: ResidentImages, rows: Tensor, table: EpochTable, augment: Augment, size: Size) -> Tensor:
    """Read a batch, cropped and flipped as the table says: uint8 (B, C, *size), on the device."""
    batch = images.read(rows)
    if not augment.flip and not augment.padding and tuple(batch.shape[-2:]) == size:
        return batch
    return crop_and_flip(batch, table.uniforms[rows], crop=size, padding=augment.padding, flip=augment.flip)


def plain_images(images: ResidentImages, rows: Tensor, size: Size) -> Tensor:
    """Read a batch for measuring: the middle of each image, uint8 (B, C, *size), on the device."""
    return centre_crop(images.read(rows), crop=size)
