"""Measured: homographies, warps, and whole pairs."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor

from avtcli.bench import baseline
from avtcli.bench.bench_setups import prepare_small
from avtcli.bench.timing import Ground, Trial
from avtcli.config.components import Plugin
from avtcli.contracts import MemorySplit
from avtcli.data.epoch_table import draw_epoch
from avtcli.data.resident_images import ResidentImages, training_batches
from avtcli.geometry.cropping import to_float
from avtcli.geometry.family_building import build_family
from avtcli.runtime.devices import to_device
from avtcli.seeding import keyed_generator
from avtcli.training.step import make_views
from avtcli.training.training_setup import Job


@contextmanager
def one_thread() -> Iterator[None]:
    """Do the arithmetic on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_homographies(ground: Ground) -> Trial:
    """Draw and solve, as `avt gen-homographies` does, against one equation system at a time."""
    scale, family = ground.scale, build_family(Plugin(name="projective"))
    generator = keyed_generator("bench", "homographies")
    return Trial(
        what=f"draw and solve {scale.homographies} for 224 px, against a loop over {scale.plain_homographies}",
        unit="homographies/s",
        ours=lambda: family.draw(scale.homographies, (224, 224), generator),
        baseline=lambda: baseline.draw_homographies(scale.plain_homographies, 224, seed=0),
        ours_count=scale.homographies,
        baseline_count=scale.plain_homographies,
    )


def measure_warp_small(ground: Ground) -> Trial:
    """Warp images of 32 px."""
    return _measure_warp(ground, side=32, images=ground.scale.small)


def measure_warp_large(ground: Ground) -> Trial:
    """Warp images of 224 px."""
    return _measure_warp(ground, side=224, images=ground.scale.large)


def _measure_warp(ground: Ground, *, side: int, images: int) -> Trial:
    pixels = noise_images(images, side)
    family = build_family(Plugin(name="projective"))
    parameters = family.draw(images, (side, side), keyed_generator("bench", "warp"))
    resident, sent = pixels.to(ground.device), to_device(parameters, ground.device)
    coefficients = list(parameters.numpy())

    def plain() -> list[Tensor]:
        moved = (baseline.warp_image(baseline.image_of(p), c) for p, c in zip(pixels, coefficients, strict=True))
        return [baseline.tensor_of(image) for image in moved]

    return Trial(
        what=f"{images} images of 3x{side}x{side} as uint8 to moved ones as float, against Pillow one by one",
        unit="images/s",
        ours=lambda: family.apply(to_float(resident), sent),
        baseline=plain,
        ours_count=images,
        baseline_count=images,
    )


def noise_images(count: int, side: int) -> Tensor:
    """Images of noise, uint8 (count, 3, side, side): what they show does not matter to the time that a warp takes."""
    return torch.randint(256, (count, 3, side, side), generator=keyed_generator("bench", "images"), dtype=torch.uint8)


def plain_pairs(job: Job, images: Tensor) -> baseline.Pairs:
    """The job's pairs made item by item; its family has the target's statistics written out, as the published ones have."""
    mean, std = job.family.statistics(job.size)
    return baseline.Pairs(
        images.cpu(),
        padding=job.config.augment.padding,
        mean=job.data.mean,
        std=job.data.std,
        target_mean=mean.tolist(),
        target_std=std.tolist(),
        seed=job.config.seed,
    )


def make_pairs(job: Job, images: ResidentImages, *, epoch: int) -> Iterator[baseline.Pair]:
    """One epoch of pairs as the loop of `avt pretrain` makes them."""
    table = draw_epoch(job.config.seed, epoch, len(images), job.family, job.size)
    batches = [table.order[first:last] for first, last in job.bounds]
    reading = training_batches(images, batches, table, job.config.augment, job.size)
    for rows, pixels in zip(batches, reading, strict=True):
        original, moved, target = make_views(job, pixels, rows, table)
        yield original, moved, target.values


def measure_pairs(ground: Ground) -> Trial:
    """Crop, flip, draw, warp, both views and the target, on one core."""
    scale = ground.scale
    job = prepare_small(ground, images=scale.pairs, batch_size=scale.pair_batch)
    pixels = noise_images(scale.pairs, 32)
    numbers = torch.arange(scale.pairs)
    images = ResidentImages(MemorySplit(pixels, None, prefix="noise"), numbers, device=job.accelerator.device)
    plain, epochs = baseline.pair_batches(plain_pairs(job, pixels), batch_size=scale.pair_batch, workers=0), count()

    def ours() -> None:
        with one_thread():
            for _ in make_pairs(job, images, epoch=next(epochs)):
                pass

    def items() -> None:
        with one_thread():
            for _ in range(0, scale.plain_pairs, scale.pair_batch):
                next(plain)

    return Trial(
        what=f"pairs of 3x32x32 in batches of {scale.pair_batch} on one core, against a DataLoader of items",
        unit="pairs/s",
        ours=ours,
        baseline=items,
        ours_count=scale.pairs,
        baseline_count=scale.plain_pairs,
    )
