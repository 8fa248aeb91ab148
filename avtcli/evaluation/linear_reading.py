"""What a linear reader finds in frozen features of two views: the transformation between them."""

from dataclasses import dataclass
from math import prod
from typing import Final

import torch
from torch import Tensor

from avtcli.evaluation.equivariance import Fit, fit_of
from avtcli.events import OnEvent
from avtcli.features.cache_storage import allocate, choose_storage
from avtcli.features.pooling import pool_features
from avtcli.features.transformed_pairs import Pairs, read_pairs
from avtcli.metrics.ridge import choose_ridge
from avtcli.metrics.transformation_error import r2_scores
from avtcli.models.encoder import Encoder
from avtcli.seeding import subset

POOL_SIZE: Final = 4
"""The side of a map that the ridge sees, in cells, at most."""
PENALTIES: Final = tuple(10.0**i for i in range(-5, 4))
"""To choose from; the columns are standardised and the penalty is a sample's, so that they suit any number of samples."""
HELD_OUT: Final = 0.1
"""The share of the pairs to fit on that chooses the penalty."""


@dataclass(frozen=True)
class RidgeFigures:
    """What a line fitted to frozen features tells."""

    fit: Fit
    width: int
    penalty: float


def measure_ridge(
    encoder: Encoder, layer: str, fit: Pairs, held_out: Pairs, *, name: str, seed: int, on_event: OnEvent
) -> RidgeFigures:
    """Fit a ridge from both views' features to the normalised target, and measure it on held-out pairs.

    The penalty is chosen by the pooled R2 on a tenth of the pairs to fit on; then all of them are fitted.

    Args:
        encoder: in eval mode, on the images' device.
        layer: the tap to read.
        fit: pairs to fit on.
        held_out: pairs that decide nothing.
        name: the encoder's in the progress.
        seed: of the tenth.
        on_event: told how far it is.
    """
    x = pair_features(encoder, layer, fit, task=f"{name}: pairs to fit on", on_event=on_event)
    y = fit.family.target(fit.parameters, fit.size)
    tenth = subset(len(x), max(1, round(HELD_OUT * len(x))), seed, "ridge held out")
    ridge, _ = choose_ridge(x, y, PENALTIES, held_out=tenth, score=lambda predicted, truth: r2_scores(predicted, truth)[1])
    x = pair_features(encoder, layer, held_out, task=f"{name}: held-out pairs", on_event=on_event)
    return RidgeFigures(fit_of(held_out, ridge.predict(x)), x.shape[1], ridge.penalty)


@torch.no_grad()
def pair_features(encoder: Encoder, layer: str, pairs: Pairs, *, task: str, on_event: OnEvent) -> Tensor:
    """The features of both views side by side: maps average-pooled to at most 4 x 4 and flattened.

    Returns:
        (n, 2 d), float32, on the CPU; on disk where they take too much of the memory.

    Raises:
        AvtError: if they fit on neither.
    """
    out, first = torch.empty(0), 0
    for views in read_pairs(pairs, task=task, on_event=on_event):
        block = torch.cat([_vectors(encoder, layer, view) for view in views], 1).float().cpu()
        if not first:
            shape = len(pairs.rows), block.shape[1]
            out = allocate(shape, choose_storage(4 * prod(shape), advice="Give a smaller --count or another --layer"))
        out[first : first + len(block)] = block
        first += len(block)
    return out


def _vectors(encoder: Encoder, layer: str, images: Tensor) -> Tensor:
    tap = encoder.features(encoder.normalise(images), [layer])[layer]
    return pool_features(tap, "avg", POOL_SIZE).flatten(1)
