"""Equivariance metrics: how well a decoder predicts the transformation between two views, and reference predictors."""

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from avtcli.events import OnEvent
from avtcli.features.finite_check import FiniteCheck
from avtcli.features.transformed_pairs import TransformedPairs, corner_errors, predict
from avtcli.metrics.accuracy import topk_percent
from avtcli.metrics.calibration import coverage, gaussian_nll
from avtcli.metrics.reference_predictors import reference_predictions
from avtcli.metrics.transformation_error import corner_error, r2_scores, retrieval_ranks, retrieval_scores
from avtcli.models.siamese import SiameseModel

LEVELS: Final = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""Probabilities of the central intervals whose coverage is reported."""
BANK: Final = 50
"""Transformed versions of an image that retrieval searches, as in SIE."""
HITS: Final = (1, 5)


@dataclass(frozen=True)
class Fit:
    """Errors of predicted transformations; none for values that are not finite or not defined.

    Attributes:
        mace_px: mean average corner error in pixels; none for photometric families.
        mse_normalised: mean squared error of the normalised target.
        r2: explained share of the target's variance, pooled over its parameters.
        r2_per_parameter: the same by the parameter's name.
    """

    mace_px: float | None = None
    mse_normalised: float | None = None
    r2: float | None = None
    r2_per_parameter: dict[str, float | None] | None = None


@dataclass(frozen=True)
class DecoderFigures:
    """Metrics of a run's decoder; none for those that it does not support."""

    fit: Fit = Fit()
    nll: float | None = None
    calibration: dict[str, Any] | None = None
    retrieval: dict[str, Any] | None = None
    accuracy: float | None = None


def measure_decoder(
    net: SiameseModel, pairs: TransformedPairs, versions: TransformedPairs, *, predicts_classes: bool, on_event: OnEvent
) -> DecoderFigures:
    """Measure a decoder in eval mode on held-out pairs; of one that predicts class logits only the accuracy.

    Retrieval takes the versions, `BANK` pairs of each image, grouped by image.

    Raises:
        NotFiniteError: if its output is not finite.
    """
    mean, log_var = predict(net, pairs, on_event=on_event)
    check = FiniteCheck()
    check.count({"decoder": mean} if log_var is None else {"decoder": mean, "decoder.log_var": log_var})
    check.finish()
    if predicts_classes:
        return DecoderFigures(accuracy=topk_percent(mean, pairs.family.classes(pairs.parameters), 1))
    decoded, _ = predict(net, versions, task="retrieval", on_event=on_event)
    return DecoderFigures(
        fit=fit_of(pairs, mean),
        nll=None if log_var is None else finite(gaussian_nll(mean, log_var, pairs.target).mean()),
        calibration=None if log_var is None else calibration_of(pairs, mean, log_var),
        retrieval=retrieval_of(versions, decoded),
    )


def fit_of(pairs: TransformedPairs, predicted: Tensor) -> Fit:
    """Compare predicted normalised targets, (n, dof), float64 on the CPU, with the pairs'."""
    family, target = pairs.family, pairs.target
    scores, pooled = r2_scores(predicted, target)
    return Fit(
        mace_px=None if family.kind == "photometric" else finite(corner_errors(pairs, predicted).mean()),
        mse_normalised=finite((predicted - target).square().mean()),
        r2=finite(pooled),
        r2_per_parameter={name: finite(score) for name, score in zip(family.names, scores, strict=True)},
    )


def calibration_of(pairs: TransformedPairs, mean: Tensor, log_var: Tensor) -> dict[str, Any]:
    """Compute the observed coverage of central intervals, pooled and by parameter."""
    shares = coverage(mean, log_var, pairs.target, LEVELS)
    return {
        "levels": list(LEVELS),
        "pooled": shares.mean(1).tolist(),
        "per_parameter": dict(zip(pairs.family.names, shares.T.tolist(), strict=True)),
    }


def retrieval_of(versions: TransformedPairs, decoded: Tensor) -> dict[str, Any]:
    """Rank each version's true target by its distance to the decoded one, among the targets of its image's versions.

    The MRR and hits are shares in [0, 1], next to those of a random ranking as chance.
    """

    def scores(ranks: Tensor) -> dict[str, float]:
        mrr, shares = retrieval_scores(ranks, HITS)
        return {"mrr": mrr, **{f"hit{k}": share for k, share in zip(HITS, shares, strict=True)}}

    ranks = retrieval_ranks(*(values.reshape(-1, BANK, values.shape[1]) for values in (decoded, versions.target)))
    return {**scores(ranks), "bank": BANK, "images": len(ranks), "chance": scores(torch.arange(1, BANK + 1))}


def baselines_of(pairs: TransformedPairs) -> dict[str, dict[str, float | None]]:
    """Measure the reference predictors on the pairs, by name; see `reference_predictions`."""
    family, size, out = pairs.family, pairs.size, {}
    for name, guess in reference_predictions(family, pairs.parameters, size).items():
        mace = mse = None
        if guess.in_from_out is not None:
            true = family.in_from_out(pairs.parameters, size)
            mace = finite(corner_error(true, guess.in_from_out, size).mean())
        if guess.target is not None:
            mse = finite((guess.target - pairs.target).square().mean())
        out[name] = {"mace_px": mace, "mse_normalised": mse}
    return out


def finite(value: Tensor | float) -> float | None:
    """Convert to a float; none for infinity and NaN, which JSON lacks."""
    number = float(value)
    return number if math.isfinite(number) else None
