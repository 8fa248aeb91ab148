"""Adaptive pooling of feature maps, and the codes of images to pool."""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from avtcli.contracts import Size
from avtcli.data.images import Images
from avtcli.data.resident_images import EVAL_BATCH_SIZE, evaluation_batches
from avtcli.events import OnEvent, Progress
from avtcli.models.encoder import Encoder

SIDE: Final = 4
"""Cells on a side that the map of a code is pooled to where images are compared."""


def pool_features(features: Tensor, pool: str, side: int) -> Tensor:
    """Reduce maps (B, C, H, W) to (B, C, side, side) by adaptive pooling: max, avg or none.

    The side, in cells, is limited to that of the map. Vectors (B, C) are returned unchanged, and so are maps for none.
    """
    if features.ndim == 2 or pool == "none":
        return features
    adaptive = functional.adaptive_max_pool2d if pool == "max" else functional.adaptive_avg_pool2d
    return adaptive(features, min(side, *features.shape[2:]))


def pools_nothing(shape: Sequence[int], side: int) -> bool:
    """Whether `pool_features` leaves a feature of this shape, (C,) or (C, H, W), as it is."""
    return len(shape) == 1 or shape[1] == shape[2] <= side


@torch.no_grad()
def read_codes(
    encoder: Encoder, images: Images, size: Size, *, task: str, on_event: OnEvent
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images with the means of their codes, (B, C, H, W) or (B, C), on the CPU.

    They are float64, so that the square of a large code is finite.
    """
    done = 0
    on_event(Progress(task, done, len(images), "images"))  # shown at once
    for batch in evaluation_batches(images, torch.split(torch.arange(len(images)), EVAL_BATCH_SIZE), size):
        yield batch, encoder(encoder.normalise(batch)).float().cpu().double()
        done += len(batch)
        on_event(Progress(task, done, len(images), "images"))
