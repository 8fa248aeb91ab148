"""Crop and flip, for a whole batch at once, before the transformation and shared by both views."""

import torch
from torch import Tensor
from torch.nn import functional


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
    """
    images = functional.pad(images, [padding] * 4) if padding else images
    room = torch.tensor([images.shape[-2] - crop[0] + 1, images.shape[-1] - crop[1] + 1], device=images.device)
    offsets = (uniforms[:, :2].to(images.device) * room).long()
    rows = offsets[:, :1] + torch.arange(crop[0], device=images.device)
    columns = torch.arange(crop[1], device=images.device).expand(len(images), -1)
    if flip:
        mirrored = (uniforms[:, 2:] < 0.5).to(images.device)
        columns = torch.where(mirrored, crop[1] - 1 - columns, columns)
    columns = offsets[:, 1:] + columns
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    # advanced indices around a slice: (B, crop h, crop w, C) -> (B, C, crop h, crop w)
    return images[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def centre_crop(images: Tensor, *, crop: tuple[int, int]) -> Tensor:
    """Cut the middle window out of (B, C, H, W)."""
    top, left = (images.shape[-2] - crop[0] + 1) // 2, (images.shape[-1] - crop[1] + 1) // 2
    return images[..., top : top + crop[0], left : left + crop[1]]


def to_float(images: Tensor) -> Tensor:
    """Turn uint8 grey levels into float32 in [0, 1]; float images pass."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
