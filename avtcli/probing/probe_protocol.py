"""A probe's protocol in words and numbers: everything that is needed to compare its figures with others'."""

from collections.abc import Mapping, Sequence
from typing import Any

from avtcli.config.components import Augment
from avtcli.config.probe_config import CLOSED_FORM_HEADS, LR_SEARCH_STEPS, ProbeConfig
from avtcli.models.weights import Weights

HEADS_IN_WORDS = {
    "linear": "BatchNorm without affine, linear",
    "mlp1": "BatchNorm without affine, linear",
    "mlp2": "two FC layers: 200 units with BatchNorm and ReLU, linear",
    "mlp3": "three FC layers: twice 200 units with BatchNorm and ReLU, linear",
    "conv": "a NIN block (3x3, 1x1, 1x1) of the features' channels, global average pooling, linear",
    "knn": "k nearest neighbours by the cosine, exact",
    "ridge": "ridge regression on one-hot labels in closed form, features standardised",
    "nonlinear": "max-pooling 3/2, twice 4096 units with BatchNorm and ReLU, linear",
}


def describe_probe(
    config: ProbeConfig,
    augment: Augment,
    source: Weights,
    *,
    layers: list[str],
    data: Sequence[Mapping[str, Any]],
    compared: bool,
) -> dict[str, Any]:
    """What the numbers depend on.

    Args:
        config: the settings.
        augment: those that hold, the config's or the run's.
        source: the weights.
        layers: that are probed.
        data: each data set's name, images and classes.
        compared: whether there is a random baseline.
    """
    samples = config.samples if source.spec.noise_scale and not config.finetune else 0
    closed = config.head in CLOSED_FORM_HEADS
    return {
        "recipe": config.recipe,
        "features": _features(config),
        "data": list(data),
        "shots": list(config.shots) or None,
        "fraction": config.fraction,
        "layers": layers,
        "pool": list(config.poolings),
        "pool_size": {layer: config.side_of(layer) for layer in layers} if set(config.poolings) != {"none"} else None,
        "samples_of_the_code": samples,
        "samples_in_words": "the code is the mean of the samples, later layers see one" if samples else "the mean of the code",
        "images": _images(augment),
        "augmentation": _augmentation(augment) if config.augments else "none",
        "head": HEADS_IN_WORDS[config.head],
        "votes": _votes(config) if config.head == "knn" else None,
        "conv_first": [layer for layer in layers if layer in config.conv_first and config.head == "nonlinear"] or None,
        **({} if closed else _training(config)),
        "chosen": _chosen(config),
        "reported": "test split" if closed else "test split, last epoch",
        "top1_best_test_epoch": None
        if closed or config.schedule is None
        else "the best epoch on test: optimistic, chooses nothing",
        "normalised": {"mean": list(source.spec.mean), "std": list(source.spec.std)},
        "baseline": _baseline(config) if compared else None,
        "supervised": _supervised(config.to_finetune(), augment) if config.supervised else None,
        "seed": config.seed,
        "seeds": config.seeds,
        "weights": source.about.get("weights"),
        "pretraining_steps": source.about.get("step"),
    }


def _training(config: ProbeConfig) -> dict[str, Any]:
    """How heads are trained that are trained step by step."""
    return {
        "optimizer": _optimizer(config),
        "schedule": _schedule(config),
        "rates": list(config.learning_rates) if config.schedule is None else None,
        "epochs": config.total_epochs,
        "batch_size": config.batch_size,
    }


def _features(config: ProbeConfig) -> str:
    if config.finetune:
        return "the backbone trained with the head up to the layer, in train mode; measured in eval mode"
    if config.augments and config.copies:
        return f"encoder frozen, eval mode, those of {config.copies} draws of each image kept and taken in turn"
    how = "images forwarded each epoch" if config.augments else "images as they are (middle crop), read once"
    return f"encoder frozen, eval mode, {how}"


def _votes(config: ProbeConfig) -> str:
    return f"exp(cosine / {config.temperature:g})" if config.temperature else "one each"


def _baseline(config: ProbeConfig) -> str:
    once = "; the spread over seeds is that of heads and draws alone" if config.seeds > 1 else ""
    return f"the same protocol on a randomly initialised backbone, seed {config.seed}{once}"


def _supervised(config: ProbeConfig, augment: Augment) -> str:
    return (
        "the same protocol on a backbone trained from random weights with all labels under a linear head on its last layer: "
        f"{_augmentation(augment)}; {config.total_epochs} epochs, {_optimizer(config)}, {_schedule(config)}; {_chosen(config)} "
        f"({_list(config.learning_rates)})"
    )


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


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
    few = "; where a class has one image nothing is held out, and the middle one is taken" if 1 in config.shots else ""
    whole = f"on {config.held_out:.0%} of train held out; the head is then trained on all of train{few}"
    if config.head == "ridge":
        return f"the penalty of {_list(config.penalties)}, {whole}"
    if config.head == "knn":
        sizes = config.neighbours
        return f"k of {_list(sizes)}, {whole}" if len(sizes) > 1 else f"nothing: k is {sizes[0]}"
    if not config.searches_lr:
        return "nothing: fixed rates, the whole training split, the last epoch"
    short = f" after {LR_SEARCH_STEPS} steps, rounded up to epochs, with a cosine of their own"
    return f"the rate,{'' if config.finetune else short} {whole}"


def describe_start(protocol: Mapping[str, Any], *, device: str) -> tuple[tuple[str, str], ...]:
    """The protocol's first lines, before the first step."""
    data = [f"{d['dataset']}: {d['train_images']} + {d['test_images']} images" for d in protocol["data"]]
    epochs = [("epochs", f"{protocol['epochs']}")] if "epochs" in protocol else []
    return (
        ("recipe", protocol["recipe"] or "none: our own protocol"),
        ("data", "; ".join(data)),
        ("layers", ", ".join(protocol["layers"])),
        ("head", protocol["head"]),
        *epochs,
        ("images", f"{protocol['augmentation'].replace('none', 'no augmentation')}"),
        ("device", device),
    )
