"""Jobs to measure: what `avt pretrain` would build from the published recipes, on the embedded images."""

from typing import Any

from avtcli.bench.timing import Ground
from avtcli.config.resolution import resolve
from avtcli.events import ignore
from avtcli.training.training_setup import Job, prepare

EMBEDDED = "fashion-mini"


def prepare_small(ground: Ground, *, images: int, batch_size: int, backbone: str = "nin", **options: Any) -> Job:
    """AVT on CIFAR-10's terms: images of 32 px, padded by 4, cropped and mirrored, whole shifts of at most 4 px.

    Args:
        ground: the device, whether to compile, and the precision.
        images: how many.
        batch_size: images a step.
        backbone: any.
        **options: of the backbone.
    """
    return _prepare(ground, "cifar10-nin", images=images, batch_size=batch_size, backbone={"name": backbone, **options})


def prepare_large(ground: Ground, *, images: int, batch_size: int) -> Job:
    """AVT with AlexNet on ImageNet's terms: the embedded images resized to 256, cropped to 224 and mirrored."""
    return _prepare(ground, "imagenet-alexnet", images=images, batch_size=batch_size, bank_count=1_000)


def _prepare(ground: Ground, recipe: str, *, images: int, batch_size: int, **over: Any) -> Job:
    settings = {
        "dataset": {"name": EMBEDDED},
        "limit_train": max(images, batch_size),
        "batch_size": batch_size,
        "device": ground.device.type,
        "compile": ground.compile,
        "precision": ground.precision,
        **over,
    }
    return prepare(resolve(settings, recipe=recipe), on_event=ignore)
