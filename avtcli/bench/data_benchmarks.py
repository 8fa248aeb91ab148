"""Benchmarks of homographies, warps and pairs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from avtcli.bench import baseline
from avtcli.bench.bench_training import baseline_pairs, build_bench_setup, our_pairs
from avtcli.bench.benchmark_timing import BenchConfig, Benchmark
from avtcli.contracts import MemorySplit
from avtcli.data.resident_images import ResidentImages
from avtcli.geometry.cropping import to_float
from avtcli.geometry.family_building import build_family
from avtcli.runtime.devices import to_device
from avtcli.seeding import keyed_generator

HOMOGRAPHIES, BASELINE_HOMOGRAPHIES = 500_000, 1_000
PAIRS, BASELINE_PAIRS, PAIR_BATCH = 1_920, 256, 128
SIZE: Final = (224, 224)
"""Of images to warp, and that homographies are sampled for."""


def measure_homographies(config: BenchConfig) -> Benchmark:
    """Sample and solve homographies."""
    family, generator = build_family("projective", {}), keyed_generator("bench", "homographies")
    return Benchmark(
        what=f"sample and solve {HOMOGRAPHIES} homographies for {SIZE[0]} px; baseline: a loop over {BASELINE_HOMOGRAPHIES}",
        unit="homographies/s",
        ours=lambda: family.sample(HOMOGRAPHIES, SIZE, generator),
        baseline=lambda: baseline.sample_homographies(BASELINE_HOMOGRAPHIES, SIZE[0], seed=0),
        ours_count=HOMOGRAPHIES,
        baseline_count=BASELINE_HOMOGRAPHIES,
    )


def measure_warp(config: BenchConfig) -> Benchmark:
    """Warp images of 224 px."""
    images, family = config.warp_images, build_family("projective", {})
    pixels = noise_images(images, SIZE[0])
    parameters = family.sample(images, SIZE, keyed_generator("bench", "warp"))
    on_device, on_device_parameters = pixels.to(config.device), to_device(parameters, config.device)
    coefficients = list(parameters.numpy())

    def warp_one_by_one() -> list[Tensor]:
        warped = (baseline.warp_image(baseline.to_pillow(p), c) for p, c in zip(pixels, coefficients, strict=True))
        return [baseline.from_pillow(image) for image in warped]

    return Benchmark(
        what=f"warp {images} uint8 images of 3x{SIZE[0]}x{SIZE[1]} to float; baseline: Pillow, one by one",
        unit="images/s",
        ours=lambda: family.apply(to_float(on_device), on_device_parameters),
        baseline=warp_one_by_one,
        ours_count=images,
        baseline_count=images,
    )


def measure_pairs(config: BenchConfig) -> Benchmark:
    """Crop, flip, sample and warp both views, with the target, on one core."""
    side, setup = config.size_px, build_bench_setup(config, images=PAIRS, batch_size=PAIR_BATCH)
    pixels, device = noise_images(PAIRS, config.size_px), setup.accelerator.device
    images = ResidentImages(MemorySplit(pixels, None, prefix="noise"), torch.arange(PAIRS), device=device)
    ours, items = our_pairs(setup, images), baseline_pairs(setup, pixels, batch_size=PAIR_BATCH, workers=0)

    def take(batches: Iterator[baseline.Pair], count: int) -> None:
        with one_thread():
            for _ in range(count):
                next(batches)

    return Benchmark(
        what=f"pairs of 3x{side}x{side} in batches of {PAIR_BATCH} on one core; baseline: a DataLoader of single pairs",
        unit="pairs/s",
        ours=lambda: take(ours, PAIRS // PAIR_BATCH),
        baseline=lambda: take(items, BASELINE_PAIRS // PAIR_BATCH),
        ours_count=PAIRS,
        baseline_count=BASELINE_PAIRS,
    )


def noise_images(count: int, side: int) -> Tensor:
    """Uniform noise, uint8 (count, 3, side, side)."""
    return torch.randint(256, (count, 3, side, side), generator=keyed_generator("bench", "images"), dtype=torch.uint8)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
