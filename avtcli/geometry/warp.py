"""Resampling a batch of images under a batch of homographies."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from avtcli.contracts import Size
from avtcli.errors import ShapeError

GREY = 128 / 255
"""The fill of the authors' release, with Pillow 5: grey level 128."""

LEVELS = 255 * (1 + 2e-7)
"""Slightly above 255, so that a level which float32 rounds down is not truncated to the next lower one."""

CACHE_BYTES = 2_500_000
"""Size, as float32, of the part of a batch that a CPU warps at once: intermediate results then stay in its caches."""

Outside = float | Literal["border", "reflect"]
"""What lies outside an image: a value in [0, 1], the nearest pixel, or the mirrored image."""


def warp(images: Tensor, in_from_out: Tensor, *, fill: Outside = GREY, truncate: bool = False) -> Tensor:
    """Resample a batch of images under a batch of homographies, bilinearly, as Pillow's PERSPECTIVE does.

    Convention:
        - images (B, C, H, W), float in [0, 1]; the result has the same shape, type and device
        - in_from_out (B, 3, 3) maps an *output* pixel (x, y, 1) to an *input* pixel: Pillow's direction
        - pixel i covers [i, i + 1); its centre is i + 0.5
        - outside the image: a constant `fill` with a hard edge, or the image continued beyond its edge (not the last centre)

    Args:
        images: the batch.
        in_from_out: one matrix per image.
        fill: the value outside, in [0, 1]; "border" repeats the nearest pixel, "reflect" mirrors the image at its edges.
        truncate: round down to one of 256 grey levels, as Pillow does for uint8 images.

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
    # grid_sample takes coordinates relative to the side: exact in float32 where the side is a power of two
    wide, high = _next_power_of_two(width), _next_power_of_two(height)
    source = images.to(work)
    if (high, wide) != (height, width):
        source = functional.pad(source, (0, wide - width, 0, high - height), mode="replicate")
    ends = 2 * width / wide, 2 * height / high
    columns, rows = (terms.to(images.device, work) for terms in _separable_terms(in_from_out, (height, width), (high, wide)))
    uvw = columns + rows
    points = uvw[:, :2] / uvw[:, 2:]  # from 0 to the ends
    if fill == "reflect":
        points = torch.stack([_reflect(axis, end) for axis, end in zip(points.unbind(1), ends, strict=True)], 1)
    grid = points.sub_(1)
    out = functional.grid_sample(source, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="border", align_corners=False)
    if truncate:
        out = out.mul_(LEVELS).floor_().div_(255)
    if not isinstance(fill, str):
        out = out.lerp_(out.new_full((), fill), _is_outside(grid.detach(), ends))  # the weight is exactly 0 or 1
    return out.to(images.dtype)


def _separable_terms(in_from_out: Tensor, size: Size, sides: Size) -> tuple[Tensor, Tensor]:
    """Contributions of the column and of the row to numerators and denominator of each pixel's position in the input.

    A position is 2 at (width, height) of `sides`. Computed in the matrices' precision, so that float32 rounds one sum only.
    Returns (B, 3, 1, W) and (B, 3, H, 1), for x, y and the denominator.
    """
    m = in_from_out.to(torch.promote_types(in_from_out.dtype, torch.float32))
    m = torch.stack([m[:, 0] * (2 / sides[1]), m[:, 1] * (2 / sides[0]), m[:, 2]], 1)
    y, x = (torch.arange(side, device=m.device, dtype=m.dtype) + 0.5 for side in size)
    return (m[:, :, :1] * x)[:, :, None, :], (m[:, :, 1:2] * y + m[:, :, 2:])[:, :, :, None]


def _is_outside(grid: Tensor, ends: tuple[float, float]) -> Tensor:
    """0 where both x and y of a position lie in [-1, end - 1), 1 elsewhere: (B, 1, H, W).

    Computed in floating point: boolean comparisons are several times slower on a CPU.
    """
    edge = torch.tensor(ends, dtype=grid.dtype) - 1
    last = edge.nextafter(-edge).tolist()
    x, y = (axis.clamp(-1, most).ne_(axis) for axis, most in zip(grid.unbind(1), last, strict=True))
    return torch.maximum(x, y)[:, None]


def _next_power_of_two(side: int) -> int:
    return 1 << (side - 1).bit_length()


def _reflect(coordinate: Tensor, side: float) -> Tensor:
    """Fold a coordinate into [0, side] by mirrors at both edges."""
    return side - (torch.remainder(coordinate, 2 * side) - side).abs()
