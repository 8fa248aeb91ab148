"""Ridge regression of the transformation on frozen features of both views."""

from dataclasses import dataclass
from math import prod
from typing import Final

import torch
from torch import Tensor

from avtcli.evaluation.equivariance import Fit, fit_of
from avtcli.events import OnEvent
from avtcli.features.cache_storage import allocate, choose_storage
from avtcli.features.finite_check import FiniteCheck
from avtcli.features.pooling import pool_features
from avtcli.features.transformed_pairs import TransformedPairs, read_pairs
from avtcli.metrics.ridge import choose_ridge
from avtcli.metrics.transformation_error import r2_scores
from avtcli.models.encoder import Encoder
from avtcli.runtime.devices import Context
from avtcli.seeding import subset

POOL_SIZE: Final = 4
"""Largest side of a pooled map, in cells."""
PENALTIES: Final = tuple(10.0**i for i in range(-5, 4))
"""Candidate penalties per sample, for standardised columns."""
HELD_OUT: Final = 0.1
"""Share of the fitting pairs that chooses the penalty."""


@dataclass(frozen=True)
class RidgeFigures:
    """Metrics of a ridge, its number of features a pair, and its penalty."""

    fit: Fit
    width: int
    penalty: float


def measure_ridge(
    encoder: Encoder, layer: str, fit: TransformedPairs, held_out: TransformedPairs, *, name: str, context: Context
) -> RidgeFigures:
    """Fit a ridge from both views' features to the normalised target, and measure it on held-out pairs.

    The penalty is chosen by pooled R2 on a tenth of the fitting pairs; then all of them are fitted.
    """
    x = pair_features(encoder, layer, fit, task=f"{name}: fitting pairs", on_event=context.on_event)
    tenth = subset(len(x), max(1, round(HELD_OUT * len(x))), context.seed, "ridge held out")
    ridge, _ = choose_ridge(x, fit.target, PENALTIES, held_out=tenth, score=lambda *both: r2_scores(*both)[1])
    x = pair_features(encoder, layer, held_out, task=f"{name}: held-out pairs", on_event=context.on_event)
    return RidgeFigures(fit_of(held_out, ridge.predict(x).cpu()), x.shape[1], ridge.penalty)


@torch.no_grad()
def pair_features(encoder: Encoder, layer: str, pairs: TransformedPairs, *, task: str, on_event: OnEvent) -> Tensor:
    """Concatenate the features of both views, (n, 2 d) float32; maps are average-pooled to at most 4 x 4 and flattened.

    They are where `choose_storage` puts them; see `FiniteCheck` for those that are not finite.
    """
    out, first, check = torch.empty(0), 0, FiniteCheck()
    for views in read_pairs(pairs, task=task, on_event=on_event):
        taps = (encoder.features(encoder.normalise(view), [layer])[layer] for view in views)
        block = torch.cat([pool_features(tap, "avg", POOL_SIZE).flatten(1) for tap in taps], 1).float()
        check.count({layer: block})
        if not first:
            shape = len(pairs.rows), block.shape[1]
            advice = "Give a smaller --count or another --layer"
            out = allocate(shape, choose_storage(4 * prod(shape), device=block.device, advice=advice))
        out[first : first + len(block)] = block
        first += len(block)
    check.finish()
    return out
