"""The protocol of `avt evaluate`: everything that is needed to compare its figures with others'."""

from typing import Any

from avtcli.evaluation.equivariance import BANK
from avtcli.evaluation.evaluation_setup import Job, in_words
from avtcli.evaluation.linear_reading import HELD_OUT, PENALTIES, POOL_SIZE
from avtcli.features.evaluation_target import Pictures, Subject


def describe_evaluation(subject: Subject, job: Job) -> dict[str, Any]:
    """What the numbers depend on, in words and numbers."""
    source, pictures = subject.source, subject.pictures
    config = source.config
    mean, std = job.family.statistics(pictures.size)
    return {
        "images": _images(pictures, job),
        "fit_pairs": len(job.choice.fit),
        "resize": pictures.augment.resize,
        "crop": list(pictures.size),
        "views": "the middle crop and the same moved; encoder in eval mode, the mean of the code",
        "law": f"fresh draws, not of a bank, of {in_words(job.plugin)}",
        "target": dict(zip(job.family.names, job.family.units, strict=True)),
        "target_mean": mean.tolist(),
        "target_std": std.tolist(),
        "objective": None if config is None else config.objective.name,
        "mace": "mean distance in pixels between the corners of the moved image mapped by the true and the decoded matrix",
        "r2": "1 - sum of squared errors / sum of squares about the held-out mean; pooled over the normalised numbers",
        "nll": "nats a pair, -log N(target; mean, exp(log_var)), summed over the numbers; log_var as the model returns it, "
        "without what an objective's loss adds to the variance (avt: variance_floor)",
        "calibration": "share of targets inside the central interval of each level",
        "retrieval": f"each version's parameters among those of {BANK} versions of its image, by Euclidean distance "
        "of the normalised numbers to the decoded ones; equal distances share the mean of their places, so that few "
        "different transformations cannot reach 1",
        "baselines": "identity; the law's mean; the best of four quarter turns about the image's centre, known without error",
        "ridge": f"on {job.layer} of both views side by side, maps average-pooled to at most {POOL_SIZE}x{POOL_SIZE}, columns "
        f"standardised; penalty of {', '.join(f'{p:g}' for p in PENALTIES)} by R2 on {HELD_OUT:.0%} of its pairs",
        "random": "the same ridge on a randomly initialised encoder",
        "chosen": "the ridge's penalty alone; the held-out images decide nothing",
        "seed": job.seed,
        "device": job.device.type,
        "pretraining_steps": source.about.get("step"),
        "weights": source.about.get("weights"),
    }


def _images(pictures: Pictures, job: Job) -> str:
    choice, train = job.choice, pictures.data.train
    whole = f"{len(choice.held_out)} of the {len(choice.split)} {choice.name} images of {pictures.dataset.name}"
    unlike = "" if choice.name == "test" else ", which has no test split: a run trained on these may have seen them"
    return f"{whole}{unlike}; the ridge is fitted on {len(choice.fit)} of the {len(train)} train images, others than those"
