"""Training as `avt pretrain` does it, and the baseline's: setups, batches and steps that benchmarks time."""

import copy
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Final

import torch
from torch import Tensor

from avtcli.bench import baseline
from avtcli.bench.benchmark_timing import BenchConfig
from avtcli.config.resolution import resolve
from avtcli.contracts import MemorySplit
from avtcli.data.epoch_table import batch_count
from avtcli.data.resident_images import ResidentImages
from avtcli.data.training_loader import Batch
from avtcli.events import OnEvent, ignore
from avtcli.training.optimizer import build_optimizer, rates_at
from avtcli.training.step import Trainer, build_noise
from avtcli.training.training_setup import TrainingSetup, build_training_setup

BUNDLED_IMAGES: Final = 2_000
WORKERS, GPU_WORKERS = 2, 16  # of the baseline's DataLoader; on a GPU at most

OurStep = Callable[[Batch], Tensor]
"""Takes a training step, and returns the mean loss of its batch, without dimensions, on the device."""
BaselineStep = Callable[[baseline.Pair], Tensor]
"""Likewise."""


def build_bench_setup(config: BenchConfig, *, images: int, batch_size: int) -> TrainingSetup:
    """Build AVT's published CIFAR-10 experiment on bundled images, with the backbone and the image size of the settings.

    The bundled images are repeated where more are wanted.
    """
    side = config.size_px
    settings = {
        "dataset": {"name": "fashion-mini"},
        "limit_train": min(images, BUNDLED_IMAGES),
        "batch_size": batch_size,
        "backbone": config.backbone.model_dump(),
        "augment": {"resize": side, "crop": side, "padding": side // 8},
        "transform": {  # the recipe's statistics are those of 32 px
            "mean": [0, 0, side / 2, 0, 0, side / 2, 0, 0],
            "std": [1, 1, side * 0.625, 1, 1, side * 0.625, 0.48 / side, 0.48 / side],
        },
        "device": config.device.type,
        "epochs": 150_000,  # about the steps of the published run, whose epochs are longer: whether to compile depends on them
        "compile": config.compile,
        "capture": config.capture,
        "precision": config.precision,
    }
    setup = build_training_setup(resolve(settings, recipe="cifar10-nin"), on_event=ignore)
    return setup if images <= BUNDLED_IMAGES else _repeated(setup, images)


def _repeated(setup: TrainingSetup, images: int) -> TrainingSetup:
    """Return the setup with its images, resized, repeated up to a number of them."""
    rows, labels = torch.arange(images) % len(setup.indices), setup.data.train.labels
    split = MemorySplit(
        our_images(setup).images.cpu()[rows], None if labels is None else labels[setup.indices][rows], prefix="repeated"
    )
    steps = batch_count(images, setup.config.batch_size)
    data = replace(setup.data, train=split)
    return replace(setup, data=data, indices=torch.arange(images), steps_per_epoch=steps)


def our_images(setup: TrainingSetup) -> ResidentImages:
    """The setup's training images on its device."""
    return ResidentImages(setup.data.train, setup.indices, device=setup.accelerator.device, shorter=setup.config.augment.resize)


def our_batches(setup: TrainingSetup, images: ResidentImages) -> Iterator[Batch]:
    """Yield batches without end, as pretraining makes them; one is valid until the next is read."""
    return setup.build_loader(images).read(0, sys.maxsize)


def first_batch(setup: TrainingSetup) -> Batch:
    """Return a copy of the first batch, which stays valid."""
    batch = next(our_batches(setup, our_images(setup)))
    targets = tuple(replace(own, values=own.values.clone(), parameters=own.parameters.clone()) for own in batch.targets)
    return replace(batch, views=tuple(view.clone() for view in batch.views), targets=targets)


def as_pair(batch: Batch) -> baseline.Pair:
    """Return a batch as the baseline takes it."""
    original, transformed = batch.views
    return original, transformed, batch.targets[0].values


def our_step(setup: TrainingSetup, *, on_event: OnEvent = ignore) -> OurStep:
    """Return a step as pretraining takes it, by a new `Trainer`."""
    trainer, steps = Trainer(setup, build_optimizer(setup.config, setup.net), on_event=on_event), count()

    def step(batch: Batch) -> Tensor:
        return trainer.step(next(steps), batch).figures[0]

    return step


def autocast_type(setup: TrainingSetup) -> torch.dtype | None:
    """The type that our step computes in under autocast, or none."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(setup.accelerator.mixed_precision)


def baseline_step(setup: TrainingSetup, *, autocast: torch.dtype | None = None) -> BaselineStep:
    """Return the baseline's step on a copy of the network, with our rates and noise.

    The copy is channels last on a CUDA device, elsewhere in PyTorch's default layout.
    """
    device = setup.accelerator.device
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    net = copy.deepcopy(setup.net).to(memory_format=layout).train()
    optimizer, noise, steps = baseline.build_optimizer(net), build_noise(setup), count()
    scaler = torch.amp.GradScaler(device.type, enabled=autocast is torch.float16)

    def step(pair: baseline.Pair) -> Tensor:
        index = next(steps)
        for group, rate in zip(optimizer.param_groups, rates_at(setup.config, index, setup.steps_per_epoch), strict=True):
            group["lr"] = rate
        return baseline.train_step(net, optimizer, pair, noise(index, len(pair[2])), autocast=autocast, scaler=scaler)

    return step


def baseline_workers(device: torch.device) -> int:
    """The worker processes of the baseline's DataLoader."""
    if device.type != "cuda":
        return WORKERS
    return min(GPU_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def baseline_pairs(setup: TrainingSetup, images: Tensor, *, batch_size: int, workers: int) -> Iterator[baseline.Pair]:
    """Yield batches of the setup's pairs without end, made item by item, on its device."""
    target_mean, target_std = (values.tolist() for values in setup.family.statistics(setup.size))
    padding, data = setup.config.augment.padding, setup.data
    dataset = baseline.PairDataset(images.cpu(), padding, data.mean, data.std, target_mean, target_std, setup.config.seed)
    return baseline.pair_batches(dataset, setup.accelerator.device, batch_size=batch_size, workers=workers)
