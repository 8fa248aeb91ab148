"""Training as `avt pretrain` does it, and the baseline's: setups, pairs and steps that benchmarks time."""

import copy
import sys
from collections.abc import Callable, Iterator
from itertools import count

import torch
from torch import Tensor

from avtcli.bench import baseline
from avtcli.bench.benchmark_timing import BenchConfig
from avtcli.config.resolution import resolve
from avtcli.contracts import Target
from avtcli.data.resident_images import ResidentImages
from avtcli.data.training_loader import Batch
from avtcli.events import ignore
from avtcli.training.optimizer import build_optimizer, set_rates
from avtcli.training.pretrain import LOG_EVERY
from avtcli.training.step import Trainer, build_noise
from avtcli.training.training_setup import TrainingSetup, build_training_setup

Step = Callable[[baseline.Pair], None]


def build_bench_setup(config: BenchConfig, *, images: int, batch_size: int) -> TrainingSetup:
    """Build AVT's published CIFAR-10 experiment on bundled images, with the backbone and the image size of the settings."""
    side = config.size_px
    settings = {
        "dataset": {"name": "fashion-mini"},
        "limit_train": images,
        "batch_size": batch_size,
        "backbone": config.backbone.model_dump(),
        "augment": {"resize": side, "crop": side, "padding": side // 8},
        "transform": {  # the recipe's statistics are those of 32 px
            "mean": [0, 0, side / 2, 0, 0, side / 2, 0, 0],
            "std": [1, 1, side * 0.625, 1, 1, side * 0.625, 0.48 / side, 0.48 / side],
        },
        "device": config.device.type,
        "compile": config.compile,
        "precision": config.precision,
    }
    return build_training_setup(resolve(settings, recipe="cifar10-nin"), on_event=ignore)


def our_images(setup: TrainingSetup) -> ResidentImages:
    """The setup's training images on its device."""
    return ResidentImages(setup.data.train, setup.indices, device=setup.accelerator.device, shorter=setup.config.augment.resize)


def our_pairs(setup: TrainingSetup, images: ResidentImages) -> Iterator[baseline.Pair]:
    """Yield batches of pairs without end, as pretraining makes them."""
    for batch in setup.build_loader(images).read(0, sys.maxsize):
        original, transformed = batch.views
        yield original, transformed, batch.targets[0].values


def our_step(setup: TrainingSetup, losses: list[Tensor]) -> Step:
    """Return a step as pretraining takes it; `losses` stay on the device and are read every `LOG_EVERY` steps."""
    trainer, steps = Trainer(setup, build_optimizer(setup.config, setup.net)), count()

    def step(pair: baseline.Pair) -> None:
        original, transformed, values = pair
        target, rows = Target(values, values, setup.family, setup.size), torch.arange(len(values))
        result = trainer.step(next(steps), Batch((original, transformed), (target,), rows, len(values)))
        losses.append(result.figures[0])
        if len(losses) % LOG_EVERY == 0:
            torch.stack(losses[-LOG_EVERY:]).tolist()

    return step


def baseline_step(setup: TrainingSetup, losses: list[float]) -> Step:
    """Return the baseline's step on a copy of the network in PyTorch's default layout, with our rates and noise."""
    net = copy.deepcopy(setup.net).to(memory_format=torch.contiguous_format).train()
    optimizer, noise, steps = baseline.build_optimizer(net), build_noise(setup), count()

    def step(pair: baseline.Pair) -> None:
        set_rates(optimizer, setup.config, index := next(steps), setup.steps_per_epoch)
        losses.append(baseline.train_step(net, optimizer, pair, noise(index, len(pair[2]))))

    return step


def baseline_pairs(setup: TrainingSetup, images: Tensor, *, batch_size: int, workers: int) -> Iterator[baseline.Pair]:
    """Yield batches of the setup's pairs without end, made item by item and moved to its device."""
    target_mean, target_std = (values.tolist() for values in setup.family.statistics(setup.size))
    padding, data = setup.config.augment.padding, setup.data
    dataset = baseline.PairDataset(images.cpu(), padding, data.mean, data.std, target_mean, target_std, setup.config.seed)
    for pair in baseline.pair_batches(dataset, batch_size=batch_size, workers=workers):
        original, transformed, target = (part.to(setup.accelerator.device) for part in pair)
        yield original, transformed, target
