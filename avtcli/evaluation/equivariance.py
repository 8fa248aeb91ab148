"""Equivariance metrics: how well a decoder predicts the transformation between two views, and reference predictors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from avtcli.contracts import Size, TransformFamily
from avtcli.events import OnEvent
from avtcli.features.finite_check import FiniteCheck
from avtcli.features.transformed_pairs import TransformedPairs, corner_errors, predict
from avtcli.geometry.homography import corner_turns
from avtcli.metrics.accuracy import topk_percent
from avtcli.metrics.calibration import calibration_error, coverage, fit_temperature, gaussian_nll
from avtcli.metrics.reference_predictors import reference_predictions
from avtcli.metrics.transformation_error import corner_error, r2_scores, retrieval_ranks, retrieval_scores
from avtcli.models.siamese import SiameseModel
from avtcli.seeding import keyed_generator

LEVELS: Final = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""Probabilities of the central intervals whose coverage is reported."""
BANK: Final = 50
"""Transformed versions of an image that retrieval searches, as in SIE."""
HITS: Final = (1, 5)
NEAR_A_TURN: Final = 30.0
"""Degrees from a multiple of 90 that the corners of a family with turns stay within; at 45 the turn is ambiguous."""
SAMPLES: Final = 1000
"""Transformations that show whether a family has turns."""


@dataclass(frozen=True)
class Fit:
    """Errors of predicted transformations; none for values that are not finite or not defined.

    Attributes:
        mace_px: mean average corner error in pixels; none for photometric families.
        right_turns: share of pairs whose decoded turn is the true one, see `corner_turns`; none for families without turns.
        mace_px_right_turn: mean corner error of these pairs, in pixels.
        mse_normalised: mean squared error of the normalised target.
        r2: explained share of the target's variance, pooled over its parameters.
        r2_per_parameter: the same by the parameter's name.
    """

    mace_px: float | None = None
    right_turns: float | None = None
    mace_px_right_turn: float | None = None
    mse_normalised: float | None = None
    r2: float | None = None
    r2_per_parameter: dict[str, float | None] | None = None


@dataclass(frozen=True)
class DecoderFigures:
    """Metrics of a run's decoder; none for those that it does not support."""

    fit: Fit = Fit()
    by_class: dict[str, dict[str, float | None]] | None = None
    nll: float | None = None
    calibration: dict[str, Any] | None = None
    retrieval: dict[str, Any] | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class ImageClasses:
    """The classes of the pairs' images: labels, (n,) int64, -1 where an image has none, and the names."""

    labels: Tensor
    names: Sequence[str]


def measure_decoder(
    net: SiameseModel,
    pairs: TransformedPairs,
    versions: TransformedPairs,
    *,
    classes: ImageClasses | None = None,
    predicts_classes: bool,
    on_event: OnEvent,
) -> DecoderFigures:
    """Measure a decoder in eval mode on held-out pairs; of one that predicts class logits only the accuracy.

    Retrieval takes the versions, `BANK` pairs of each image, grouped by image. Errors are split by the classes, where given.

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
        by_class=None if classes is None else errors_by_class(pairs, mean, classes),
        nll=None if log_var is None else finite(gaussian_nll(mean, log_var, pairs.target).mean()),
        calibration=None if log_var is None else calibration_of(pairs, mean, log_var),
        retrieval=retrieval_of(versions, decoded),
    )


def fit_of(pairs: TransformedPairs, predicted: Tensor) -> Fit:
    """Compare predicted normalised targets, (n, dof), float64 on the CPU, with the pairs'."""
    family, target = pairs.family, pairs.target
    scores, pooled = r2_scores(predicted, target)
    photometric = family.kind == "photometric"
    return Fit(
        **({} if photometric else _corner_figures(corner_errors(pairs, predicted), _are_turns_right(pairs, predicted))),
        mse_normalised=finite((predicted - target).square().mean()),
        r2=finite(pooled),
        r2_per_parameter={name: finite(score) for name, score in zip(family.names, scores, strict=True)},
    )


def errors_by_class(
    pairs: TransformedPairs, predicted: Tensor, classes: ImageClasses
) -> dict[str, dict[str, float | None]] | None:
    """Split the corner error of predicted targets by the image's class, next to its images; none for photometric families."""
    if pairs.family.kind == "photometric":
        return None
    errors, right = corner_errors(pairs, predicted), _are_turns_right(pairs, predicted)
    out: dict[str, dict[str, float | None]] = {}
    for label in sorted({*classes.labels.tolist()} - {-1}):
        own = classes.labels == label
        figures = _corner_figures(errors[own], None if right is None else right[own])
        out[classes.names[label]] = {"images": int(own.sum()), **figures}
    return out


def has_turns(family: TransformFamily, size: Size) -> bool:
    """Whether a family with matrices rotates the corners by different multiples of 90 degrees, and by little else."""
    parameters = family.sample(SAMPLES, size, keyed_generator("turns"))
    turns, rest = corner_turns(family.in_from_out(parameters, size), size)
    return bool((turns != turns[0]).any()) and bool((rest < NEAR_A_TURN).all())


def _are_turns_right(pairs: TransformedPairs, predicted: Tensor) -> Tensor | None:
    """Whether each decoded turn is the true one, (n,) bool; none for families without turns."""
    family, size = pairs.family, pairs.size
    if not has_turns(family, size):
        return None
    both = (pairs.parameters, family.decode(predicted, size))
    true, decoded = (corner_turns(family.in_from_out(parameters, size), size)[0] for parameters in both)
    return true == decoded


def _corner_figures(errors: Tensor, right: Tensor | None) -> dict[str, float | None]:
    """The mean of corner errors, (n,), in pixels, the share of right turns, and the mean of the errors at these."""
    figures = {"mace_px": finite(errors.mean()), "right_turns": None, "mace_px_right_turn": None}
    if right is None:
        return figures
    return figures | {"right_turns": finite(right.double().mean()), "mace_px_right_turn": finite(errors[right].mean())}


def calibration_of(pairs: TransformedPairs, mean: Tensor, log_var: Tensor) -> dict[str, Any]:
    """Compute the observed coverage of central intervals, pooled and by parameter, and what a temperature changes."""
    shares = coverage(mean, log_var, pairs.target, LEVELS)
    return {
        "levels": list(LEVELS),
        "pooled": shares.mean(1).tolist(),
        "per_parameter": dict(zip(pairs.family.names, shares.T.tolist(), strict=True)),
        "temperature": temperature_of(mean, log_var, pairs.target),
    }


def temperature_of(mean: Tensor, log_var: Tensor, target: Tensor) -> dict[str, Any]:
    """Fit one factor of all variances on every second pair, and compare the calibration before and after on the others."""
    temperature = fit_temperature(mean[1::2], log_var[1::2], target[1::2])
    mean, log_var, target = mean[::2], log_var[::2], target[::2]

    def judged(scaled: Tensor) -> dict[str, Any]:
        shares, nll = coverage(mean, scaled, target, LEVELS), gaussian_nll(mean, scaled, target).mean()
        error = calibration_error(shares, LEVELS)
        return {"nll": finite(nll), "calibration_error": error, "coverage": shares.mean(1).tolist()}

    after = judged(log_var + math.log(temperature)) if 0 < temperature < math.inf else None
    return {"temperature": finite(temperature), "pairs": len(target), "before": judged(log_var), "after": after}


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
