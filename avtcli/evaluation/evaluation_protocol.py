"""The protocol of `avt evaluate`: everything that is needed to compare its figures with others'."""

from typing import Any

from avtcli.evaluation.equivariance import BANK
from avtcli.evaluation.evaluation_setup import EvaluationSetup, in_words
from avtcli.evaluation.linear_reading import HELD_OUT, PENALTIES, POOL_SIZE
from avtcli.features.evaluation_target import EvaluationTarget, PreparedImages


def describe_evaluation(subject: EvaluationTarget, setup: EvaluationSetup) -> dict[str, Any]:
    """What the numbers depend on, in words and numbers."""
    source, prepared = subject.source, subject.prepared
    config = source.config
    mean, std = setup.family.statistics(prepared.size)
    return {
        "images": _images(prepared, setup),
        "fit_pairs": len(setup.choice.fit),
        "resize": prepared.augment.resize,
        "crop": list(prepared.size),
        "views": "the middle crop and the same transformed; encoder in eval mode, the mean of the code",
        "distribution": f"fresh draws, not of a bank, of {in_words(setup.plugin)}",
        "target": dict(zip(setup.family.names, setup.family.units, strict=True)),
        "target_mean": mean.tolist(),
        "target_std": std.tolist(),
        "objective": None if config is None else config.objective.name,
        "mace": "mean distance in pixels between the corners of the transformed image mapped by the true and the decoded matrix",
        "r2": "1 - sum of squared errors / sum of squares about the held-out mean; pooled over the normalised numbers",
        "nll": "nats a pair, -log N(target; mean, exp(log_var)), summed over the numbers; log_var as the model returns it, "
        "without what an objective's loss adds to the variance (avt: variance_floor)",
        "calibration": "share of targets inside the central interval of each level",
        "retrieval": f"each version's parameters among those of {BANK} versions of its image, by Euclidean distance "
        "of the normalised numbers to the decoded ones; equal distances share the mean of their places, so that few "
        "different transformations cannot reach 1",
        "baselines": "identity; the distribution's mean; the best of four quarter turns about the image's centre, known without error",
        "ridge": f"on {setup.layer} of both views side by side, maps average-pooled to at most {POOL_SIZE}x{POOL_SIZE}, columns "
        f"standardised; penalty of {', '.join(f'{p:g}' for p in PENALTIES)} by R2 on {HELD_OUT:.0%} of its pairs",
        "random": "the same ridge on a randomly initialised encoder",
        "chosen": "the ridge's penalty alone; the held-out images decide nothing",
        "seed": setup.seed,
        "device": setup.device.type,
        "pretraining_steps": source.about.get("step"),
        "weights": source.about.get("weights"),
    }


def _images(prepared: PreparedImages, setup: EvaluationSetup) -> str:
    choice, train = setup.choice, prepared.data.train
    whole = f"{len(choice.held_out)} of the {len(choice.split)} {choice.name} images of {prepared.dataset.name}"
    unlike = "" if choice.name == "test" else ", which has no test split: a run trained on these may have seen them"
    return f"{whole}{unlike}; the ridge is fitted on {len(choice.fit)} of the {len(train)} train images, others than those"
