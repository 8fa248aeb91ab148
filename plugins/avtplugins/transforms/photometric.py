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
    """Four enhancement factors, applied in the order of their names; each blends the image with a degenerate one.

    A factor k gives degenerate + k (image - degenerate), clipped: 1 changes nothing, 0 gives the degenerate image. The
    degenerate images are those of Pillow's ImageEnhance: grey, the mean grey, black, and smoothed. Source: EnAET
    (arXiv 1911.09265), whose release samples the factors from U(0.2, 1.8) and enhances in this order.
    """

    low: float
    high: float
    truncate: bool
    kind = "photometric"
    names = ("colour", "contrast", "brightness", "sharpness")
    units = ("", "", "", "")

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Sample factors (n, 4), float64."""
        return self.low + (self.high - self.low) * torch.rand(n, 4, generator=generator, dtype=torch.float64)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Enhance a batch.

        Raises:
            ShapeError: if the images have neither one nor three channels.
        """
        if images.shape[1] not in (1, 3):
            raise ShapeError(f"'photometric' needs images of 1 or 3 channels, found {images.shape[1]}.")
        levels = self._rounded(images.to(torch.promote_types(images.dtype, torch.float32)) * 255)
        colour, contrast, brightness, sharpness = parameters.to(levels)[:, :, None, None, None].unbind(1)
        levels = self._blend(self._grey(levels), levels, colour)
        levels = self._blend(self._rounded(self._grey(levels).mean((1, 2, 3), keepdim=True)), levels, contrast)
        levels = self._blend(torch.zeros_like(levels), levels, brightness)
        levels = self._blend(self._smooth(levels), levels, sharpness)
        return (levels / 255).to(images.dtype)

    def _blend(self, degenerate: Tensor, levels: Tensor, factor: Tensor) -> Tensor:
        blended = (degenerate + factor * (levels - degenerate)).clamp(0, 255)
        return blended.floor() if self.truncate else blended

    def _rounded(self, levels: Tensor) -> Tensor:
        return (levels + 0.5).floor() if self.truncate else levels

    def _grey(self, levels: Tensor) -> Tensor:
        """The luma of ITU-R 601 in Pillow's fixed point, (B, 1, H, W), about 0.299 R + 0.587 G + 0.114 B."""
        if levels.shape[1] == 1:
            return levels
        red, green, blue = levels[:, :1], levels[:, 1:2], levels[:, 2:]
        return self._rounded((19595 * red + 38470 * green + 7471 * blue) / 65536)

    def _smooth(self, levels: Tensor) -> Tensor:
        """Pillow's SMOOTH: the mean of the 3 x 3 neighbours, the centre weighted five times; edge pixels are kept."""
        inner = levels[..., 1:-1, 1:-1]
        out = levels.clone()
        out[..., 1:-1, 1:-1] = self._rounded((9 * functional.avg_pool2d(levels, 3, 1) + 4 * inner) / 13)
        return out

    def statistics(self, size: Size) -> tuple[Tensor, Tensor]:
        """Return those of the uniform distribution; the deviation is 1 where the factors are constant."""
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


def photometric(*, low: float = 0.2, high: float = 1.8, truncate: bool = True) -> TransformFamily:
    """Random colour, contrast, brightness and sharpness, as in Pillow's ImageEnhance; the target is the four factors.

    Args:
        low: smallest factor, 0 or more; 0 removes all colour, contrast, light or sharpness, 1 changes nothing.
        high: largest factor, at least the smallest.
        truncate: keep integer grey levels after each step, as Pillow and EnAET's release do.
    """
    if not 0 <= low <= high:
        raise AvtError(f"transform.low and high need 0 <= low <= high, found {low} and {high}.")
    return Photometric(low=low, high=high, truncate=truncate)
