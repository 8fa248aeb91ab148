"""Sizes after resizing, and batched crop and flip, applied before the transformation and shared by both views."""

import torch
from torch import Tensor
from torch.nn import functional

from avtcli.errors import ShapeError


def resized_size(size: tuple[int, int], shorter: int | None) -> tuple[int, int]:
    """Return (height, width) after resizing the shorter side; the longer one is rounded down, as torchvision does."""
    if shorter is None:
        return size
    longer = int(shorter * max(size) / min(size))
    return (shorter, longer) if size[0] <= size[1] else (longer, shorter)


def crop_and_flip(images: Tensor, uniforms: Tensor, *, crop: tuple[int, int], padding: int = 0, flip: bool = True) -> Tensor:
    """Crop each image of a batch at a random position and flip some of them horizontally.

    Args:
        images: (B, C, H, W), any type.
        uniforms: (B, 3) float64 in [0, 1): top, left, and flipped where below 0.5. An offset is floor(u * (largest offset +
            1)), so that one table serves images of any size. On the images' device, or on the CPU.
        crop: (height, width).
        padding: zeros added on each side first, in pixels.
        flip: whether to flip at all.

    Returns:
        (B, C, *crop), of the images' type.

    Raises:
        ShapeError: if the crop is larger than the padded images.
    """
    images = functional.pad(images, [padding] * 4) if padding else images
    room = [images.shape[-2] - crop[0] + 1, images.shape[-1] - crop[1] + 1]
    if min(room) < 1:
        raise ShapeError(f"No crop of {crop[0]}x{crop[1]} px fits into {images.shape[-2]}x{images.shape[-1]} px.")
    top, left = ((uniforms[:, axis] * room[axis]).long() for axis in (0, 1))
    flipped = uniforms[:, 2] < 0.5 if flip else None
    if images.device.type != "cpu":
        return _crop_indexed(images, top, left, flipped, crop)
    if flipped is None:
        return _crop_strided(images, torch.arange(len(images)), top, left, crop)
    order = flipped.argsort(stable=True)  # images to flip come last, so that they form one slice
    crops = _crop_strided(images, order, top[order], left[order], crop)
    last = crops[len(crops) - int(flipped.sum()) :]
    last.copy_(last.flip(-1))
    return crops.index_select(0, order.argsort())


def _crop_strided(images: Tensor, rows: Tensor, top: Tensor, left: Tensor, crop: tuple[int, int]) -> Tensor:
    """Select crops from an overlapping view with one crop per memory position: the fastest way on a CPU."""
    images = images.contiguous()
    channels, height, width = images.shape[1:]
    extent = (channels - 1) * height * width + (crop[0] - 1) * width + crop[1]
    crops = images.as_strided((images.numel() - extent + 1, channels, *crop), (1, height * width, width, 1))
    return crops.index_select(0, rows * (channels * height * width) + top * width + left)


def _crop_indexed(images: Tensor, top: Tensor, left: Tensor, flipped: Tensor | None, crop: tuple[int, int]) -> Tensor:
    """Gather each pixel by its index, in one pass and without a size that the host must know."""
    y, x = (torch.arange(side, device=top.device) for side in crop)
    columns = x if flipped is None else torch.where(flipped[:, None], crop[1] - 1 - x, x)
    rows, columns = (index.to(images.device) for index in (top[:, None] + y, left[:, None] + columns))
    image, channel = (torch.arange(count, device=images.device) for count in images.shape[:2])
    return images[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def centre_crop(images: Tensor, *, crop: tuple[int, int]) -> Tensor:
    """Crop the middle of (..., H, W)."""
    top, left = (images.shape[-2] - crop[0] + 1) // 2, (images.shape[-1] - crop[1] + 1) // 2
    return images[..., top : top + crop[0], left : left + crop[1]]


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 grey levels to float32 in [0, 1]; float images pass."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images
