"""Ridge regression of the transformation on frozen features of both views."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import torch
from torch import Tensor

from avtcli.evaluation.equivariance import Fit, fit_of
from avtcli.features.cache_storage import allocate, choose_storage
from avtcli.features.feature_reader import tap_shapes
from avtcli.features.finite_check import FiniteCheck
from avtcli.features.pooling import pool_features
from avtcli.features.transformed_pairs import TransformedPairs, read_pairs
from avtcli.metrics.ridge import choose_ridge
from avtcli.metrics.transformation_error import r2_scores
from avtcli.models.encoder import Encoder
from avtcli.runtime.devices import Context
from avtcli.runtime.processes import shared_rows
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


def measure_ridges(
    encoder: Encoder, layers: Sequence[str], fit: TransformedPairs, held_out: TransformedPairs, *, name: str, context: Context
) -> dict[str, RidgeFigures]:
    """Fit a ridge from both views' features of each layer to the normalised target, and measure it on held-out pairs.

    The penalty is chosen by pooled R2 on a tenth of the fitting pairs; then all of them are fitted. One pass over the
    pairs serves all layers.
    """
    features = pair_features(encoder, layers, fit, task=f"{name}: fitting pairs", context=context)
    tenth, target = subset(len(fit.rows), max(1, round(HELD_OUT * len(fit.rows))), context.seed, "ridge held out"), fit.target
    ridges = {
        layer: choose_ridge(features.pop(layer), target, PENALTIES, held_out=tenth, score=lambda *both: r2_scores(*both)[1])[0]
        for layer in layers
    }
    features = pair_features(encoder, layers, held_out, task=f"{name}: held-out pairs", context=context)
    return {
        layer: RidgeFigures(fit_of(held_out, ridge.predict(features[layer]).cpu()), features[layer].shape[1], ridge.penalty)
        for layer, ridge in ridges.items()
    }


@torch.no_grad()
def pair_features(
    encoder: Encoder, layers: Sequence[str], pairs: TransformedPairs, *, task: str, context: Context
) -> dict[str, Tensor]:
    """Concatenate the features of both views, by layer: (n, 2 d) float32, maps average-pooled to at most 4 x 4 and flattened.

    They are where `choose_storage` puts them; see `FiniteCheck` for those that are not finite.
    """
    check, taps = FiniteCheck(), tap_shapes(encoder, layers, pairs.size)
    pooled = _pooled({layer: torch.empty(1, *shape) for layer, shape in taps.items()})
    shapes = {layer: (len(pairs.rows), 2 * part.shape[1]) for layer, part in pooled.items()}
    advice, needed = "Give a smaller --count or another --layer", 4 * sum(map(prod, shapes.values()))
    storage = choose_storage(needed, device=encoder.pixel_mean.device, advice=advice)
    out = {layer: allocate(shape, storage) for layer, shape in shapes.items()}
    with shared_rows(context.group, list(out.values()), pairs.batches) as own:
        for rows, views in zip(own, read_pairs(pairs, own, task=task, on_event=context.on_event), strict=True):
            x, y = (_pooled(encoder.features(encoder.standardise(view), layers)) for view in views)
            block = {layer: torch.cat([x[layer], y[layer]], 1).float() for layer in layers}
            check.count(block)
            for layer, part in block.items():
                out[layer][int(rows[0]) : int(rows[-1]) + 1] = part
        check.finish()
    return out


def _pooled(taps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {layer: pool_features(tap, "avg", POOL_SIZE).flatten(1) for layer, tap in taps.items()}
