"""Measured: homographies, warps, and whole pairs."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor

from avtcli.bench import baseline
from avtcli.bench.bench_setups import build_small_setup
from avtcli.bench.timing import BenchConfig, Benchmark
from avtcli.contracts import MemorySplit
from avtcli.data.epoch_table import sample_epoch_table
from avtcli.data.resident_images import ResidentImages, training_batches
from avtcli.geometry.cropping import to_float
from avtcli.geometry.family_building import build_family
from avtcli.runtime.devices import to_device
from avtcli.seeding import keyed_generator
from avtcli.training.step import make_views
from avtcli.training.training_setup import TrainingSetup


@contextmanager
def one_thread() -> Iterator[None]:
    """Do the arithmetic on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_homographies(bench: BenchConfig) -> Benchmark:
    """Draw and solve, as `avt gen-homographies` does, against one equation system at a time."""
    scale, family = bench.scale, build_family("projective", {})
    generator = keyed_generator("bench", "homographies")
    return Benchmark(
        what=f"draw and solve {scale.homographies} for 224 px, against a loop over {scale.plain_homographies}",
        unit="homographies/s",
        ours=lambda: family.sample(scale.homographies, (224, 224), generator),
        baseline=lambda: baseline.draw_homographies(scale.plain_homographies, 224, seed=0),
        ours_count=scale.homographies,
        baseline_count=scale.plain_homographies,
    )


def measure_warp_small(bench: BenchConfig) -> Benchmark:
    """Warp images of 32 px."""
    return _measure_warp(bench, side=32, images=bench.scale.small)


def measure_warp_large(bench: BenchConfig) -> Benchmark:
    """Warp images of 224 px."""
    return _measure_warp(bench, side=224, images=bench.scale.large)


def _measure_warp(bench: BenchConfig, *, side: int, images: int) -> Benchmark:
    pixels = noise_images(images, side)
    family = build_family("projective", {})
    parameters = family.sample(images, (side, side), keyed_generator("bench", "warp"))
    resident, sent = pixels.to(bench.device), to_device(parameters, bench.device)
    coefficients = list(parameters.numpy())

    def plain() -> list[Tensor]:
        transformed = (baseline.warp_image(baseline.image_of(p), c) for p, c in zip(pixels, coefficients, strict=True))
        return [baseline.tensor_of(image) for image in transformed]

    return Benchmark(
        what=f"{images} images of 3x{side}x{side} as uint8 to transformed ones as float, against Pillow one by one",
        unit="images/s",
        ours=lambda: family.apply(to_float(resident), sent),
        baseline=plain,
        ours_count=images,
        baseline_count=images,
    )


def noise_images(count: int, side: int) -> Tensor:
    """Images of noise, uint8 (count, 3, side, side): what they show does not matter to the time that a warp takes."""
    return torch.randint(256, (count, 3, side, side), generator=keyed_generator("bench", "images"), dtype=torch.uint8)


def plain_pairs(setup: TrainingSetup, images: Tensor) -> baseline.Pairs:
    """The setup's pairs made item by item; its family has the target's statistics written out, as the published ones have."""
    mean, std = setup.family.statistics(setup.size)
    return baseline.Pairs(
        images.cpu(),
        padding=setup.config.augment.padding,
        mean=setup.data.mean,
        std=setup.data.std,
        target_mean=mean.tolist(),
        target_std=std.tolist(),
        seed=setup.config.seed,
    )


def make_pairs(setup: TrainingSetup, images: ResidentImages, *, epoch: int) -> Iterator[baseline.Pair]:
    """One epoch of pairs as the loop of `avt pretrain` makes them."""
    table = sample_epoch_table(setup.config.seed, epoch, len(images), setup.family, setup.size)
    batches = [table.order[first:last] for first, last in setup.bounds]
    reading = training_batches(images, batches, table, setup.config.augment, setup.size)
    for rows, pixels in zip(batches, reading, strict=True):
        original, transformed, target = make_views(setup, pixels, rows, table)
        yield original, transformed, target.values


def measure_pairs(bench: BenchConfig) -> Benchmark:
    """Crop, flip, draw, warp, both views and the target, on one core."""
    scale = bench.scale
    setup = build_small_setup(bench, images=scale.pairs, batch_size=scale.pair_batch)
    pixels = noise_images(scale.pairs, 32)
    numbers = torch.arange(scale.pairs)
    images = ResidentImages(MemorySplit(pixels, None, prefix="noise"), numbers, device=setup.accelerator.device)
    plain, epochs = baseline.pair_batches(plain_pairs(setup, pixels), batch_size=scale.pair_batch, workers=0), count()

    def ours() -> None:
        with one_thread():
            for _ in make_pairs(setup, images, epoch=next(epochs)):
                pass

    def items() -> None:
        with one_thread():
            for _ in range(0, scale.plain_pairs, scale.pair_batch):
                next(plain)

    return Benchmark(
        what=f"pairs of 3x32x32 in batches of {scale.pair_batch} on one core, against a DataLoader of items",
        unit="pairs/s",
        ours=ours,
        baseline=items,
        ours_count=scale.pairs,
        baseline_count=scale.plain_pairs,
    )
