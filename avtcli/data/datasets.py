"""Data sets by name, and which of their images are used at which size."""

import os
from pathlib import Path

from torch import Tensor

from avtcli import registry
from avtcli.config.components import Augment, Plugin
from avtcli.contracts import ImageData, Size, Split
from avtcli.data.images import resized_size
from avtcli.errors import AvtError
from avtcli.seeding import subset


def data_folder(data_dir: str | None) -> Path:
    """Return --data-dir, else $AVT_DATA, else ./data."""
    return Path(data_dir or os.environ.get("AVT_DATA") or "data")


def build_data(plugin: Plugin, data_dir: str | None) -> ImageData:
    """Open a data set.

    Raises:
        AvtError: if it is missing, incomplete or empty.
    """
    data: ImageData = registry.build("dataset", plugin.name, plugin.options, data_dir=data_folder(data_dir))
    if not len(data.train):
        raise AvtError(f"The data set '{plugin.name}' has no training images.")
    return data


def limited(split: Split, limit: int | None) -> Tensor:
    """Return the indices of the images to use: all, or a draw that depends on the split's length and the limit alone.

    Raises:
        AvtError: if there are fewer images than asked for.
    """
    if limit is not None and limit > len(split):
        raise AvtError(f"--limit-train {limit} is more than the {len(split)} images of the split.")
    return subset(len(split), limit, "limit", len(split))


def image_size(data: ImageData, augment: Augment) -> Size:
    """Return the (height, width) of network input.

    Raises:
        AvtError: if the images differ in size and no crop says otherwise, or are smaller than the crop.
    """
    size = None if data.size is None else resized_size(data.size, augment.resize)
    if augment.crop is None:
        if size is None:
            raise AvtError("The images differ in size: give `-o augment.resize=256 -o augment.crop=224`.")
        return size
    shorter = augment.resize if size is None else min(size)
    if shorter is not None and shorter < augment.crop:  # evaluation crops without padding
        found = f"{augment.resize} px on their shorter side" if size is None else f"{size[0]}x{size[1]} px"
        raise AvtError(f"The images are {found}, too small for augment.crop = {augment.crop}.")
    return (augment.crop, augment.crop)
