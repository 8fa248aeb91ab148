"""The benchmarks: homographies, warps and pairs, the training step and the loop around it, and an epoch of a probe."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import torch
from torch import Tensor

from avtcli.bench import baseline
from avtcli.bench.bench_training import baseline_pairs, build_bench_setup, our_batches, our_images
from avtcli.bench.benchmark_timing import BenchConfig, Benchmark
from avtcli.bench.training_benchmarks import measure_loop, measure_processes, measure_step
from avtcli.config.probe_config import ProbeConfig
from avtcli.contracts import MemorySplit
from avtcli.data.resident_images import ResidentImages
from avtcli.events import ignore
from avtcli.features.feature_cache import CachedFeatures, extract
from avtcli.features.feature_reader import Feature, ForwardedImages, LabelledImages
from avtcli.geometry.cropping import to_float
from avtcli.geometry.family_building import build_family
from avtcli.probing.head import TrainedHead
from avtcli.probing.head_training import HeadTraining, RowSubset, train_heads
from avtcli.probing.heads import resolve_head
from avtcli.probing.joint_heads import HeadSpec
from avtcli.runtime.devices import Context, to_device
from avtcli.seeding import keyed_generator

HOMOGRAPHIES, BASELINE_HOMOGRAPHIES = 500_000, 1_000
PAIRS, BASELINE_PAIRS, PAIR_BATCH = 1_920, 256, 128
SIZE: Final = (224, 224)
"""Of images to warp, and that homographies are sampled for."""
CLASSES, RATE = 10, 0.01  # of the probe


def measure_homographies(config: BenchConfig) -> Benchmark:
    """Sample and solve homographies."""
    family, generator = build_family("projective", {}), keyed_generator("bench", "homographies")
    return Benchmark(
        f"sample and solve {HOMOGRAPHIES} homographies for {SIZE[0]} px; baseline: a loop over {BASELINE_HOMOGRAPHIES}",
        "homographies/s",
        ours=lambda: family.sample(HOMOGRAPHIES, SIZE, generator),
        baseline=lambda: baseline.sample_homographies(BASELINE_HOMOGRAPHIES, SIZE[0], seed=0),
        counts=(HOMOGRAPHIES, BASELINE_HOMOGRAPHIES),
    )


def measure_warp(config: BenchConfig) -> Benchmark:
    """Warp images of 224 px."""
    images, family = config.warp_images, build_family("projective", {})
    pixels = noise_images(images, SIZE[0])
    parameters = family.sample(images, SIZE, keyed_generator("bench", "warp"))
    on_device, on_device_parameters = pixels.to(config.device), to_device(parameters, config.device)

    def warp_one_by_one() -> list[Tensor]:
        warped = (baseline.warp_image(baseline.to_pillow(p), c) for p, c in zip(pixels, parameters.numpy(), strict=True))
        return [baseline.from_pillow(image) for image in warped]

    def warp_all() -> Tensor:
        return family.apply(to_float(on_device), on_device_parameters)

    what = f"warp {images} uint8 images of 3x{SIZE[0]}x{SIZE[1]} to float; baseline: Pillow, one by one"
    return Benchmark(what, "images/s", ours=warp_all, baseline=warp_one_by_one, counts=(images, images))


def measure_pairs(config: BenchConfig) -> Benchmark:
    """Crop, flip, sample and warp both views, with the target, on one core."""
    side, setup = config.size_px, build_bench_setup(config, images=PAIRS, batch_size=PAIR_BATCH)
    pixels, device = noise_images(PAIRS, side), setup.accelerator.device
    images = ResidentImages(MemorySplit(pixels, None, prefix="noise"), torch.arange(PAIRS), device=device)
    ours, items = our_batches(setup, images), baseline_pairs(setup, pixels, batch_size=PAIR_BATCH, workers=0)

    def take(batches: Iterator[object], count: int) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for _ in range(count):
                next(batches)
        finally:
            torch.set_num_threads(before)

    return Benchmark(
        f"pairs of 3x{side}x{side} in batches of {PAIR_BATCH} on one core; baseline: a DataLoader of single pairs",
        "pairs/s",
        ours=partial(take, ours, PAIRS // PAIR_BATCH),
        baseline=partial(take, items, BASELINE_PAIRS // PAIR_BATCH),
        counts=(PAIRS, BASELINE_PAIRS),
    )


def noise_images(count: int, side: int) -> Tensor:
    """Uniform noise, uint8 (count, 3, side, side)."""
    return torch.randint(256, (count, 3, side, side), generator=keyed_generator("bench", "images"), dtype=torch.uint8)


def measure_probe(config: BenchConfig) -> Benchmark:
    """One epoch of a linear head on the code."""
    setup = build_bench_setup(config, images=config.probe_images, batch_size=config.probe_batch)
    encoder, layer, labels = setup.net.encoder.eval(), setup.net.encoder.backbone.code_tap, setup.data.train.labels
    assert labels is not None
    images, labels, feature = our_images(setup), labels[setup.indices].to(config.device), Feature(layer, "max", 4)
    data = LabelledImages(images, labels, "train", setup.size)
    forwarded = ForwardedImages(encoder, data, [feature], augment=None, samples=0, seed=0)
    (features,) = extract(forwarded, separate=False, task="features", on_event=ignore)
    on_device = {names: tensor.to(config.device) for names, tensor in features.items()}
    reader, rows = CachedFeatures(on_device, labels, device=config.device), torch.arange(len(labels))
    probe, specs = ProbeConfig(epochs=1, batch_size=config.probe_batch), [HeadSpec(feature, RATE)]
    kind = resolve_head(probe.head)
    assert isinstance(kind, TrainedHead)
    training = HeadTraining(kind, probe, CLASSES, Context(config.device), "head")
    train_cached = partial(train_heads, RowSubset(reader, rows), RowSubset(reader, rows[:2]), specs, training)
    head = kind.build(layer, reader.shapes[feature], CLASSES).to(config.device)
    optimizer = torch.optim.SGD(head.parameters(), lr=RATE, momentum=0.9, nesterov=True)
    batches = [(images.images[r], labels[r]) for r in torch.split(rows.to(config.device), config.probe_batch)]
    train_forwarded = partial(baseline.probe_epoch, encoder, layer, head, optimizer, batches)
    what = f"one epoch of a linear head on cached features of {len(labels)} images; baseline: forwards the images"
    return Benchmark(what, "images/s", ours=train_cached, baseline=train_forwarded, counts=(len(labels), len(labels)))


BENCHMARKS: Final[dict[str, Callable[[BenchConfig], Benchmark]]] = {
    "homographies": measure_homographies,
    "warp-224": measure_warp,
    "pairs": measure_pairs,
    "step": measure_step,
    "loop": measure_loop,
    "processes": measure_processes,
    "probe": measure_probe,
}
"""The benchmarks by name, in the order that they run in."""
