"""Resampling a batch of images under a batch of homographies."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from avtcli.errors import ShapeError

GREY = 128 / 255
"""The fill of the authors' release: grey level 128, as its Pillow 5 drew it."""


Outside = float | Literal["border", "reflect"]
"""What lies outside an image: one value in [0, 1], its nearest pixel, or its mirror image."""


def warp(images: Tensor, in_from_out: Tensor, *, fill: Outside = GREY, truncate: bool = False) -> Tensor:
    """Resample a batch of images under a batch of homographies, bilinearly, as Pillow's PERSPECTIVE does.

    Convention:
        - images (B, C, H, W), float in [0, 1]; the result has the same shape, type and device
        - in_from_out (B, 3, 3) maps an *output* pixel (x, y, 1) to an *input* pixel: Pillow's direction
        - pixel i covers [i, i + 1); its centre is i + 0.5
        - outside the image: a constant `fill` with a hard edge, or the image continued beyond its edge (not its last centre)

    Args:
        images: the batch.
        in_from_out: one matrix an image.
        fill: the value outside, in [0, 1]; "border" repeats the nearest pixel, "reflect" mirrors the image at its edges.
        truncate: round down to one of the 256 grey levels, as Pillow does for uint8 images.

    Raises:
        ShapeError: if the two batches differ in length.
    """
    if in_from_out.shape != (len(images), 3, 3):
        raise ShapeError(
            f"{len(images)} images need in_from_out of shape ({len(images)}, 3, 3), found {tuple(in_from_out.shape)}."
        )
    height, width = images.shape[-2:]
    work = torch.promote_types(images.dtype, torch.float32)  # coordinates never in reduced precision
    m = in_from_out.to(images.device, work).flatten(1)[:, :, None, None].unbind(1)
    x = torch.arange(width, device=images.device, dtype=work)[None, None, :] + 0.5
    y = torch.arange(height, device=images.device, dtype=work)[None, :, None] + 0.5
    w = m[6] * x + m[7] * y + m[8]
    u, v = (m[0] * x + m[1] * y + m[2]) / w, (m[3] * x + m[4] * y + m[5]) / w
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    if fill == "reflect":
        u, v = _reflect(u, width), _reflect(v, height)
    # grid_sample takes coordinates as shares of a side: exact in float32 where the side is a power of two
    wide, high = _power_of_two(width), _power_of_two(height)
    source = functional.pad(images.to(work), (0, wide - width, 0, high - height), mode="replicate")
    grid = torch.stack([2 * u / wide - 1, 2 * v / high - 1], -1)
    out = functional.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if truncate:
        # a grey level that float32 puts a hair below itself must not fall by one
        out = (out * 255 + 1e-5).floor() / 255
    if not isinstance(fill, str):
        out = torch.where(inside[:, None], out, fill)
    return out.to(images.dtype)


def _power_of_two(side: int) -> int:
    """The smallest power of two that is no less than a side."""
    return 1 << (side - 1).bit_length()


def _reflect(coordinate: Tensor, side: int) -> Tensor:
    """The place in [0, side] where a mirror at each edge shows a coordinate."""
    return side - (torch.remainder(coordinate, 2 * side) - side).abs()
