"""Jobs to measure: what `avt pretrain` would build from the published recipes, on the embedded images."""

from typing import Any

from avtcli.bench.timing import BenchConfig
from avtcli.config.resolution import resolve
from avtcli.events import ignore
from avtcli.training.training_setup import TrainingSetup, build_training_setup

EMBEDDED = "fashion-mini"


def build_small_setup(
    bench: BenchConfig, *, images: int, batch_size: int, backbone: str = "nin", **options: Any
) -> TrainingSetup:
    """AVT on CIFAR-10's terms: images of 32 px, padded by 4, cropped and flipped, whole shifts of at most 4 px.

    Args:
        bench: the device, whether to compile, and the precision.
        images: how many.
        batch_size: images a step.
        backbone: any.
        **options: of the backbone.
    """
    return _prepare(bench, "cifar10-nin", images=images, batch_size=batch_size, backbone={"name": backbone, **options})


def build_large_setup(bench: BenchConfig, *, images: int, batch_size: int) -> TrainingSetup:
    """AVT with AlexNet on ImageNet's terms: the embedded images resized to 256, cropped to 224 and flipped."""
    return _prepare(bench, "imagenet-alexnet", images=images, batch_size=batch_size, bank_count=1_000)


def _prepare(bench: BenchConfig, recipe: str, *, images: int, batch_size: int, **over: Any) -> TrainingSetup:
    settings = {
        "dataset": {"name": EMBEDDED},
        "limit_train": max(images, batch_size),
        "batch_size": batch_size,
        "device": bench.device.type,
        "compile": bench.compile,
        "precision": bench.precision,
        **over,
    }
    return build_training_setup(resolve(settings, recipe=recipe), on_event=ignore)
