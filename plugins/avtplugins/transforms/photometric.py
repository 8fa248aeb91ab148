"""Colour, contrast, brightness and sharpness, the CCBS of EnAET."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Generator, Tensor
from torch.nn import functional

from avtcli.contracts import Size, TransformFamily
from avtcli.errors import AvtError, ShapeError


@dataclass(frozen=True, kw_only=True)
class Photometric(TransformFamily):
    """Four factors, applied in the order of their names; each blends the image with a duller one of itself.

    A factor k gives duller + k (image - duller), clipped: 1 changes nothing, 0 leaves the duller image. The duller images are
    those of Pillow's ImageEnhance: grey, the mean grey, black, and smoothed. Weights: EnAET (arXiv 1911.09265), whose release
    draws the four factors from U(0.2, 1.8) and enhances in this order.
    """

    low: float
    high: float
    truncate: bool
    kind = "photometric"
    names = ("colour", "contrast", "brightness", "sharpness")
    units = ("", "", "", "")

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Factors (n, 4), float64."""
        return self.low + (self.high - self.low) * torch.rand(n, 4, generator=generator, dtype=torch.float64)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Enhance a batch.

        Raises:
            ShapeError: if the images have neither one nor three channels.
        """
        if images.shape[1] not in (1, 3):
            raise ShapeError(f"'photometric' needs images of 1 or 3 channels, found {images.shape[1]}.")
        levels = images.to(torch.promote_types(images.dtype, torch.float32)) * 255
        levels = _nearest(levels, self.truncate)
        colour, contrast, brightness, sharpness = parameters.to(levels)[:, :, None, None, None].unbind(1)
        levels = self._blend(grey(levels, whole=self.truncate), levels, colour)
        mean_grey = _nearest(grey(levels, whole=self.truncate).mean((1, 2, 3), keepdim=True), self.truncate)
        levels = self._blend(mean_grey, levels, contrast)
        levels = self._blend(torch.zeros_like(levels), levels, brightness)
        levels = self._blend(smooth(levels, whole=self.truncate), levels, sharpness)
        return (levels / 255).to(images.dtype)

    def _blend(self, duller: Tensor, levels: Tensor, factor: Tensor) -> Tensor:
        blended = (duller + factor * (levels - duller)).clamp(0, 255)
        return blended.floor() if self.truncate else blended

    def statistics(self, size: Size) -> tuple[Tensor, Tensor]:
        """Of the uniform distribution: the middle, and the range over sqrt(12); 1 where the factors are fixed."""
        std = (self.high - self.low) / sqrt(12) or 1.0
        return torch.full((4,), (self.low + self.high) / 2, dtype=torch.float64), torch.full((4,), std, dtype=torch.float64)

    def target(self, parameters: Tensor, size: Size) -> Tensor:
        """(factors - mean) / std."""
        mean, std = (s.to(parameters) for s in self.statistics(size))
        return (parameters - mean) / std

    def decode(self, target: Tensor, size: Size) -> Tensor:
        """Target * std + mean."""
        mean, std = (s.to(target) for s in self.statistics(size))
        return target * std + mean


def grey(levels: Tensor, *, whole: bool) -> Tensor:
    """The luma of ITU-R 601 in Pillow's fixed point, about 0.299 R + 0.587 G + 0.114 B, (B, 1, H, W); one channel is its own.

    Args:
        levels: (B, 1 or 3, H, W), 0 to 255.
        whole: round to whole levels, as Pillow's "L".
    """
    if levels.shape[1] == 1:
        return levels
    red, green, blue = levels[:, :1], levels[:, 1:2], levels[:, 2:]
    return _nearest((19595 * red + 38470 * green + 7471 * blue) / 65536, whole)


def smooth(levels: Tensor, *, whole: bool) -> Tensor:
    """Pillow's SMOOTH: the mean of the 3 x 3 neighbours, the middle counted five times; the outermost pixels stay.

    Args:
        levels: (B, C, H, W), 0 to 255.
        whole: round to whole levels.
    """
    inner = levels[..., 1:-1, 1:-1]
    smoothed = _nearest((9 * functional.avg_pool2d(levels, 3, 1) + 4 * inner) / 13, whole)
    out = levels.clone()
    out[..., 1:-1, 1:-1] = smoothed
    return out


def _nearest(levels: Tensor, whole: bool) -> Tensor:
    return (levels + 0.5).floor() if whole else levels


def photometric(*, low: float = 0.2, high: float = 1.8, truncate: bool = True) -> TransformFamily:
    """Colour, contrast, brightness and sharpness by random factors, as Pillow's ImageEnhance; the target is the factors.

    Args:
        low: the smallest factor; 0 takes all colour, contrast, light or sharp edges away, 1 changes nothing.
        high: the largest factor.
        truncate: keep whole grey levels after each step, as Pillow and so EnAET's release do.
    """
    if not 0 <= low <= high:
        raise AvtError(f"transform.low and high need 0 <= low <= high, found {low} and {high}.")
    return Photometric(low=low, high=high, truncate=truncate)
