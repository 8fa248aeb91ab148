"""A probe's protocol in words and numbers: everything that is needed to compare its figures with others'."""

from collections.abc import Mapping
from typing import Any

from avtcli.config import Augment, Plugin, ProbeConfig
from avtcli.runs.loading import Source

HEADS_IN_WORDS = {
    "linear": "BatchNorm without affine, linear",
    "mlp1": "BatchNorm without affine, linear",
    "mlp2": "two FC layers: 200 units with BatchNorm and ReLU, linear",
    "mlp3": "three FC layers: twice 200 units with BatchNorm and ReLU, linear",
    "conv": "a NIN block (3x3, 1x1, 1x1) of the features' channels, global average pooling, linear",
    "nonlinear": "max-pooling 3/2, twice 4096 units with BatchNorm and ReLU, linear",
}


def describe_probe(
    config: ProbeConfig,
    augment: Augment,
    dataset: Plugin,
    source: Source,
    *,
    layers: list[str],
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """What the numbers depend on.

    Args:
        config: the settings.
        augment: those that hold, the config's or the run's.
        dataset: the labelled images.
        source: the weights.
        layers: that are probed.
        counts: images and classes.
    """
    samples = config.samples if source.spec.noise_scale else 0
    return {
        "recipe": config.recipe,
        "features": "encoder frozen, eval mode, "
        + ("images forwarded each epoch" if config.augmented else "images as they are (middle crop), read once"),
        "dataset": dataset.name,
        **counts,
        "shots": list(config.shots) or None,
        "layers": layers,
        "pool": config.pooling,
        "pool_size": None if config.pooling == "none" else {layer: config.side_of(layer) for layer in layers},
        "samples_of_the_code": samples,
        "samples_in_words": "the code is the mean of the samples, later layers see one" if samples else "the mean of the code",
        "images": _images(augment),
        "augmentation": _augmentation(augment) if config.augmented else "none",
        "head": HEADS_IN_WORDS[config.head],
        "conv_first": [layer for layer in layers if layer in config.conv_first and config.head == "nonlinear"] or None,
        "optimizer": _optimizer(config),
        "schedule": _schedule(config),
        "rates": list(config.rates) if config.schedule is None else None,
        "epochs": config.total_epochs,
        "batch_size": config.batch_size,
        "chosen": _chosen(config),
        "reported": "test split, last epoch",
        "top1_best_test_epoch": "the best epoch on test: optimistic, chooses nothing",
        "baseline": "the same protocol on a randomly initialised backbone" if config.baseline else None,
        "seed": config.seed,
        "seeds": config.seeds,
        "pretraining_steps": source.about.get("step"),
    }


def _images(augment: Augment) -> str:
    resize = "no resizing" if augment.resize is None else f"shorter side to {augment.resize} px"
    crop = "whole" if augment.crop is None else f"the middle {augment.crop} px"
    return f"{resize}; for measuring {crop}"


def _augmentation(augment: Augment) -> str:
    crop = "random crop of the images' own size" if augment.crop is None else f"random crop of {augment.crop} px"
    padding = f" after padding by {augment.padding}" if augment.padding else ""
    return f"{crop}{padding}{', flip' if augment.flip else ''}"


def _optimizer(config: ProbeConfig) -> str:
    optimizer = config.optimizer
    if optimizer.name == "adamw":
        return f"AdamW, weight decay {optimizer.weight_decay:g}"
    nesterov = ", Nesterov" if optimizer.nesterov else ""
    return f"SGD, momentum {optimizer.momentum:g}{nesterov}, weight decay {optimizer.weight_decay:g}"


def _schedule(config: ProbeConfig) -> str:
    schedule = config.schedule
    if schedule is None:
        return "cosine to 0"
    if not schedule.pieces:
        return f"cosine from {schedule.rate:g} to 0, warm-up {schedule.warmup:.0%}"
    scale = config.total_epochs / schedule.epochs
    pieces = [
        f"{p.rate:g}{f' {p.slope / scale:+g} an epoch' if p.slope else ''} from epoch {p.start * scale:g}"
        for p in schedule.pieces
    ]
    return ", ".join(pieces)


def _chosen(config: ProbeConfig) -> str:
    if config.schedule is not None:
        return "nothing: fixed rates, the whole training split, the last epoch"
    return f"the rate, on {config.held_out:.0%} of train held out; the head is then trained on all of train"


def describe_start(protocol: Mapping[str, Any], *, device: str) -> tuple[tuple[str, str], ...]:
    """The protocol's first lines, before the first step."""
    return (
        ("recipe", protocol["recipe"] or "none: our own protocol"),
        ("data", f"{protocol['dataset']}: {protocol['train_images']} + {protocol['test_images']} images"),
        ("layers", ", ".join(protocol["layers"])),
        ("head", protocol["head"]),
        ("epochs", f"{protocol['epochs']}, {protocol['augmentation'].replace('none', 'no augmentation')}"),
        ("device", device),
    )
