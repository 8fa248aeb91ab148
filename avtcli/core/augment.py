"""Crop and flip, for a whole batch at once, before the transformation and shared by both views."""

import torch
from torch import Tensor
from torch.nn import functional

from avtcli.errors import ShapeError


def crop_and_flip(images: Tensor, uniforms: Tensor, *, crop: tuple[int, int], padding: int = 0, flip: bool = True) -> Tensor:
    """Cut one window out of each image and mirror some of them.

    Args:
        images: (B, C, H, W), any type; zeros are padded around them (the release pads black).
        uniforms: (B, 3) in [0, 1): top, left, and mirrored where below one half. They become floor(u * (room + 1)), so the
            same table serves images of any size.
        crop: (height, width) of the window.
        padding: pixels added on each side before.
        flip: whether to mirror at all.

    Returns:
        (B, C, *crop), of the images' type.

    Raises:
        ShapeError: if the window is larger than the padded images.
    """
    images = functional.pad(images, [padding] * 4) if padding else images
    room = [images.shape[-2] - crop[0] + 1, images.shape[-1] - crop[1] + 1]
    if min(room) < 1:
        raise ShapeError(f"No window of {crop[0]}x{crop[1]} px fits into {images.shape[-2]}x{images.shape[-1]} px.")
    top, left = (uniforms[:, :2].cpu() * torch.tensor(room)).long().unbind(1)
    cut = (_slice_windows if images.device.type == "cpu" else _index_windows)(images, top, left, crop)
    if not flip:
        return cut
    rows = torch.arange(len(cut)) + len(cut) * (uniforms[:, 2].cpu() < 0.5)
    return torch.cat([cut, cut.flip(-1)]).index_select(0, rows.to(cut.device))


def _slice_windows(images: Tensor, top: Tensor, left: Tensor, crop: tuple[int, int]) -> Tensor:
    """Copy one slice an image out of a view that has a window at every place in memory: on a CPU ten times as fast."""
    images = images.contiguous()
    channels, height, width = images.shape[1:]
    extent = (channels - 1) * height * width + (crop[0] - 1) * width + crop[1]
    windows = images.as_strided((images.numel() - extent + 1, channels, *crop), (1, height * width, width, 1))
    return windows.index_select(0, torch.arange(len(images)) * (channels * height * width) + top * width + left)


def _index_windows(images: Tensor, top: Tensor, left: Tensor, crop: tuple[int, int]) -> Tensor:
    """Index each element: for devices that may first write out a view whose windows overlap."""
    windows = images.unfold(2, crop[0], 1).unfold(3, crop[1], 1)  # (B, C, room h, room w, *crop)
    return windows[torch.arange(len(images), device=images.device), :, top.to(images.device), left.to(images.device)]


def centre_crop(images: Tensor, *, crop: tuple[int, int]) -> Tensor:
    """Cut the middle window out of (B, C, H, W)."""
    top, left = (images.shape[-2] - crop[0] + 1) // 2, (images.shape[-1] - crop[1] + 1) // 2
    return images[..., top : top + crop[0], left : left + crop[1]]


def to_float(images: Tensor) -> Tensor:
    """Turn uint8 grey levels into float32 in [0, 1]; float images pass."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images
