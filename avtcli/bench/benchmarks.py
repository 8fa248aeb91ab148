"""The benchmarks: homographies, warps and pairs, JPEG files, the training step, the loop around it, an epoch of a probe."""

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avtcli import registry
from avtcli.bench import baseline
from avtcli.bench.bench_training import baseline_pairs, baseline_workers, build_bench_setup, our_batches, our_images
from avtcli.bench.benchmark_timing import BenchConfig, Benchmark, seconds_of
from avtcli.bench.training_benchmarks import measure_loop, measure_processes, measure_step
from avtcli.config.probe_config import ProbeConfig
from avtcli.contracts import MemorySplit
from avtcli.data.images import CropSpec
from avtcli.data.resident_images import ResidentImages
from avtcli.data.streaming import StreamedImages
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
JPEG_BATCH, SHORTER = 32, 256
"""Images of a batch of `jpeg`, and their shorter side after resizing, in pixels."""
CPU: Final = torch.device("cpu")
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


def measure_jpeg(config: BenchConfig) -> Benchmark:
    """Read JPEG files: decode, resize, crop and flip."""
    count, workers = config.jpeg_images, baseline_workers(config.device)
    folder = tempfile.mkdtemp(prefix="avt-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    files = write_photographs(Path(folder), count)
    data = registry.build("dataset", f"folder:{folder}", {"channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3})
    rows, crop = torch.arange(count), CropSpec(SIZE, flip=True)
    images = StreamedImages(data.train, rows, device=config.device, shorter=SHORTER, workers=workers)
    loader = baseline.image_loader(folder, shorter=SHORTER, crop=SIZE[0], batch_size=JPEG_BATCH, workers=workers)

    def read() -> None:
        draws = torch.rand(count, 3, dtype=torch.float64)
        for _ in images.read_batches(torch.split(rows, JPEG_BATCH), crop, torch.split(draws, JPEG_BATCH)):
            pass

    def figures(rate: float) -> dict[str, Any]:
        shares = [files[worker::workers] for worker in range(workers)]
        with ProcessPoolExecutor(workers, torch.multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_read_with_pillow, shares))  # starts the processes
            seconds = seconds_of(lambda: list(pool.map(_read_with_pillow, shares)), CPU)
        return {"pillow": count / seconds, "share_of_pillow": rate * seconds / count}

    what = (
        f"read {count} JPEG files of 500x375 px, resize to {SHORTER} px and crop {SIZE[0]} px in {workers} processes; "
        "baseline: torchvision's ImageFolder and a DataLoader"
    )
    return Benchmark(what, "images/s", read, partial(baseline.read_epoch, loader, config.device), (count, count), figures)


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Write smooth images with some noise, 500x375 px, as JPEG files in a folder below."""
    generator, files = np.random.default_rng(0), [folder / "class" / f"{i}.jpg" for i in range(count)]
    (folder / "class").mkdir()
    for file in files:
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        noise = generator.integers(-16, 17, (375, 500, 3), dtype=np.int16)
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)) + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return files


def _read_with_pillow(paths: Sequence[Path]) -> None:
    """Do what `jpeg` measures, without a flip, by Pillow alone."""
    for path in paths:
        with Image.open(path) as file:
            image = file.convert("RGB")
        width, height = (SHORTER * side // min(image.size) for side in image.size)
        left, top = (width - SIZE[1]) // 2, (height - SIZE[0]) // 2
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        np.array(resized.crop((left, top, left + SIZE[1], top + SIZE[0])))


def measure_probe(config: BenchConfig) -> Benchmark:
    """One epoch of a linear head on the code."""
    setup = build_bench_setup(config, images=config.probe_images, batch_size=config.probe_batch)
    encoder, layer, labels = setup.net.encoder.eval(), setup.net.encoder.backbone.code_tap, setup.data.train.labels
    assert labels is not None
    images, labels, feature = our_images(setup), labels[setup.indices].to(config.device), Feature(layer, "max", 4)
    data = LabelledImages(images, labels, "train", setup.size)
    forwarded = ForwardedImages(encoder, data, [feature], augment=None, samples=0, seed=0)
    features = {f: own.to(config.device) for f, own in extract(forwarded, task="features", on_event=ignore).items()}
    reader, rows = CachedFeatures(features, labels, device=config.device), torch.arange(len(labels))
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
    "jpeg": measure_jpeg,
    "step": measure_step,
    "loop": measure_loop,
    "processes": measure_processes,
    "probe": measure_probe,
}
"""The benchmarks by name, in the order that they run in."""
