"""Figures of equivariance: how well a decoder tells what transformed an image, beside predictors that see none."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from avtcli.events import OnEvent
from avtcli.features.transformed_pairs import Pairs, corner_errors, predict
from avtcli.metrics.accuracy import topk_percent
from avtcli.metrics.calibration import coverage, gaussian_nll
from avtcli.metrics.reference_predictors import reference_predictions
from avtcli.metrics.transformation_error import corner_error, r2_scores, retrieval_ranks, retrieval_scores
from avtcli.models.siamese import SiameseModel

CURVE: Final = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""The probabilities of the central intervals whose coverage is reported, 0.5, 0.8 and 0.95 among them."""
BANK: Final = 50
"""Versions of an image among which its own is looked for, as in SIE."""
HITS: Final = (1, 5)


@dataclass(frozen=True)
class Fit:
    """How near predictions are to the truth; none stands for what is not finite or not defined.

    Attributes:
        mace_px: the mean average corner error; none for photometric families.
        mse_normalised: the squared error of the normalised target, averaged over pairs and its numbers.
        r2: the share of the target's variance that is predicted, pooled over its numbers.
        r2_per_parameter: the same by the number's name.
    """

    mace_px: float | None = None
    mse_normalised: float | None = None
    r2: float | None = None
    r2_per_parameter: dict[str, float | None] | None = None


@dataclass(frozen=True)
class DecoderFigures:
    """What a run's own decoder tells; none for what it does not."""

    fit: Fit = Fit()
    nll: float | None = None
    calibration: dict[str, Any] | None = None
    retrieval: dict[str, Any] | None = None
    accuracy: float | None = None


def measure_decoder(
    net: SiameseModel, pairs: Pairs, versions: Pairs, *, predicts_classes: bool, on_event: OnEvent
) -> DecoderFigures:
    """Measure a decoder.

    Args:
        net: in eval mode, on the images' device.
        pairs: held-out images, each transformed once.
        versions: some of them, each transformed 50 times, one image after the other; for retrieval.
        predicts_classes: whether the mean holds logits of the family's classes: then accuracy is all there is.
        on_event: told how far it is.
    """
    mean, log_var = predict(net, pairs, on_event=on_event)
    if predicts_classes:
        return DecoderFigures(accuracy=topk_percent(mean, pairs.family.classes(pairs.parameters), 1))
    target = pairs.family.target(pairs.parameters, pairs.size)
    decoded, _ = predict(net, versions, task="retrieval", on_event=on_event)
    return DecoderFigures(
        fit=fit_of(pairs, mean),
        nll=None if log_var is None else finite(gaussian_nll(mean, log_var, target).mean()),
        calibration=None if log_var is None else calibration_of(pairs, mean, log_var),
        retrieval=retrieval_of(versions, decoded),
    )


def fit_of(pairs: Pairs, predicted: Tensor) -> Fit:
    """Compare normalised targets, (n, dof), float64 on the CPU, with the truth of pairs."""
    family = pairs.family
    target = family.target(pairs.parameters, pairs.size)
    scores, pooled = r2_scores(predicted, target)
    return Fit(
        mace_px=None if family.kind == "photometric" else finite(corner_errors(pairs, predicted).mean()),
        mse_normalised=finite((predicted - target).square().mean()),
        r2=finite(pooled),
        r2_per_parameter=_named(family.names, scores),
    )


def calibration_of(pairs: Pairs, mean: Tensor, log_var: Tensor) -> dict[str, Any]:
    """Observed against nominal coverage: levels, and the observed shares pooled and by the number's name."""
    family = pairs.family
    shares = coverage(mean, log_var, family.target(pairs.parameters, pairs.size), CURVE)
    return {
        "levels": list(CURVE),
        "pooled": shares.mean(1).tolist(),
        "per_parameter": dict(zip(family.names, shares.T.tolist(), strict=True)),
    }


def retrieval_of(versions: Pairs, decoded: Tensor) -> dict[str, Any]:
    """How near each version's own parameters are to what was decoded, among those of all versions of its image.

    Args:
        versions: 50 of each image, one image after the other.
        decoded: normalised targets, (images * 50, dof).

    Returns:
        MRR and hits as shares in [0, 1], the bank's size, the number of images, and the figures of chance.
    """
    target = versions.family.target(versions.parameters, versions.size)
    ranks = retrieval_ranks(*(values.reshape(-1, BANK, values.shape[1]) for values in (decoded, target)))
    by_chance = torch.arange(1, BANK + 1)
    return {**_retrieval(ranks), "bank": BANK, "images": len(ranks), "chance": _retrieval(by_chance)}


def _retrieval(ranks: Tensor) -> dict[str, float]:
    mrr, shares = retrieval_scores(ranks, HITS)
    return {"mrr": mrr, **{f"hit{k}": share for k, share in zip(HITS, shares, strict=True)}}


def baselines_of(pairs: Pairs) -> dict[str, dict[str, float | None]]:
    """What trivial predictors score on the same pairs, by name; see `core.trivial`."""
    family, size = pairs.family, pairs.size
    target, out = family.target(pairs.parameters, size), {}
    for name, guess in reference_predictions(family, pairs.parameters, size).items():
        mace = mse = None
        if guess.in_from_out is not None:
            true = family.in_from_out(pairs.parameters, size)
            mace = finite(corner_error(true, guess.in_from_out, size).mean())
        if guess.target is not None:
            mse = finite((guess.target - target).square().mean())
        out[name] = {"mace_px": mace, "mse_normalised": mse}
    return out


def finite(value: Tensor | float) -> float | None:
    """A number, or none for infinity and NaN, which JSON has not."""
    number = float(value)
    return number if math.isfinite(number) else None


def _named(names: Iterable[str], values: Tensor) -> dict[str, float | None]:
    return {name: finite(value) for name, value in zip(names, values, strict=True)}
