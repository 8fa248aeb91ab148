"""Resampling a batch of images under a batch of homographies."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from avtcli.contracts import Size
from avtcli.errors import ShapeError

GREY = 128 / 255
"""The fill of the authors' release: grey level 128, as its Pillow 5 drew it."""

LEVELS = 255 * (1 + 2e-7)
"""Grey levels in [0, 1], and a hair, so that one which float32 puts just below itself does not fall by one."""

CACHE_BYTES = 2_500_000
"""How large a part of a batch, as float32, is warped at once on a CPU, so that what comes between stays in its caches.

Four images of 224 px: on two x86 cores with 1 MiB each, 1.5 times as fast as 32 at once, 1.7 times on two threads.
"""

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
    at_once = max(torch.get_num_threads(), CACHE_BYTES // max(1, 4 * images.shape[1:].numel()))
    if images.device.type == "cpu" and len(images) > at_once:
        parts = zip(torch.split(images, at_once), torch.split(in_from_out, at_once), strict=True)
        return torch.cat([warp(part, matrices, fill=fill, truncate=truncate) for part, matrices in parts])
    height, width = images.shape[-2:]
    work = torch.promote_types(images.dtype, torch.float32)  # coordinates never in reduced precision
    # grid_sample takes coordinates as shares of a side: exact in float32 where the side is a power of two
    wide, high = _power_of_two(width), _power_of_two(height)
    source = images.to(work)
    if (high, wide) != (height, width):
        source = functional.pad(source, (0, wide - width, 0, high - height), mode="replicate")
    ends = 2 * width / wide, 2 * height / high
    columns, rows = (line.to(images.device, work) for line in _lines(in_from_out, (height, width), (high, wide)))
    uvw = columns + rows
    places = uvw[:, :2] / uvw[:, 2:]  # from 0 to the ends
    if fill == "reflect":
        places = _reflect(places, places.new_tensor(ends)[:, None, None])
    grid = places.sub_(1)
    out = functional.grid_sample(source, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="border", align_corners=False)
    if truncate:
        out = out.mul_(LEVELS).floor_().div_(255)
    if not isinstance(fill, str):
        out = out.lerp_(out.new_full((), fill), _is_outside(grid.detach(), ends))  # exactly the one or the other
    return out.to(images.dtype)


def _lines(in_from_out: Tensor, size: Size, sides: Size) -> tuple[Tensor, Tensor]:
    """What a column and what a row add to the numerators and the denominator of its pixels' places in the input.

    A place is 2 at (width, height) of `sides`. In the matrices' own precision: float32 rounds no more than one sum.

    Returns:
        (B, 3, 1, W) and (B, 3, H, 1), for x, y and the denominator.
    """
    m = in_from_out.to(torch.promote_types(in_from_out.dtype, torch.float32))
    m = m * m.new_tensor([[2 / sides[1]], [2 / sides[0]], [1]])
    y, x = (torch.arange(side, device=m.device, dtype=m.dtype) + 0.5 for side in size)
    return (m[:, :, :1] * x)[:, :, None, :], (m[:, :, 1:2] * y + m[:, :, 2:])[:, :, :, None]


def _is_outside(grid: Tensor, ends: tuple[float, float]) -> Tensor:
    """0 where a place, both x and y, lies from -1 to below its end - 1, and 1 elsewhere: (B, 1, H, W).

    As numbers: comparisons that give truth values take several times as long on a CPU.
    """
    line = torch.tensor(ends, dtype=grid.dtype) - 1
    last = line.nextafter(-line).tolist()
    x, y = (axis.clamp(-1, most).ne_(axis) for axis, most in zip(grid.unbind(1), last, strict=True))
    return torch.maximum(x, y)[:, None]


def _power_of_two(side: int) -> int:
    """The smallest power of two that is no less than a side."""
    return 1 << (side - 1).bit_length()


def _reflect(coordinate: Tensor, side: Tensor) -> Tensor:
    """The place in [0, side] where a mirror at each edge shows a coordinate."""
    return side - (torch.remainder(coordinate, 2 * side) - side).abs()
