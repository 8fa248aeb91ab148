"""Timing of two implementations of one task in turn, so that other load on the machine affects both."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import torch

from avtcli.config.components import Plugin

NIN: Final = Plugin(name="nin")
GPU_WORK: Final = {  # enough to fill it, and for a stable rate
    "batch_size": 512,
    "steps": 100,
    "epoch_batches": 100,
    "probe_images": 10_000,
    "probe_batch": 256,
    "warp_images": 512,
    "jpeg_images": 4_096,
    "matmul_side": 8_192,
    "copy_bytes": 2**30,
}


@dataclass(frozen=True)
class BenchConfig:
    """Settings of `avt bench`.

    Attributes:
        device: of both sides.
        backbone: of `step`, `loop` and `probe`.
        size_px: side of their images and of those of `pairs`.
        batch_size: of `step` and `loop`.
        compile: whether our step is compiled; none for the default of `avt pretrain`. The baseline is eager.
        capture: whether our step is captured as a CUDA graph; likewise.
        precision: auto, fp32, bf16 or fp16; that of the baseline too, on a CUDA device.
        steps: steps of a round of `step` and `loop`.
        epoch_batches: batches of an epoch of `loop`.
        probe_images: images of `probe`.
        probe_batch: its batch size.
        warp_images: images of a round of `warp-224`.
        jpeg_images: files of a round of `jpeg`.
        matmul_side: side of the square matrices whose product is the reference for GFLOP/s.
        copy_bytes: size of the tensor whose copy is the reference for the bytes that memory moves per second.
    """

    device: torch.device
    backbone: Plugin = NIN
    size_px: int = 32
    batch_size: int = 32
    compile: bool | None = None
    capture: bool | None = None
    precision: str = "auto"
    steps: int = 1
    epoch_batches: int = 3
    probe_images: int = 256
    probe_batch: int = 128
    warp_images: int = 32
    jpeg_images: int = 256
    matmul_side: int = 2_048
    copy_bytes: int = 2**28

    @classmethod
    def build(cls, device: torch.device, **given: Any) -> "BenchConfig":
        """Fill in what is not given (None) with the defaults of the device."""
        defaults = {} if device.type == "cpu" else GPU_WORK
        return cls(device, **defaults | {name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Benchmark:
    """Two implementations of one task.

    A call of `ours` and one of `baseline` do `counts` units of work, complete once the device is synchronised. `figures` gives
    further figures after the last round, from our median rate. `close` is called at the end, however that comes.
    """

    what: str
    unit: str
    ours: Callable[[], object]
    baseline: Callable[[], object]
    counts: tuple[int, int]
    figures: Callable[[float], dict[str, Any]] = lambda rate: {}
    close: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Comparison:
    """Units per second and the ratio ours / baseline: medians over the rounds, and the extremes of the ratio."""

    name: str
    what: str
    unit: str
    ours: float
    baseline: float
    ratio: float
    ratio_low: float
    ratio_high: float
    ours_rounds: tuple[float, ...]
    baseline_rounds: tuple[float, ...]
    figures: dict[str, Any]


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Time one call, until the device has finished."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def compare(name: str, benchmark: Benchmark, *, device: torch.device, rounds: int) -> Comparison:
    """Time both implementations in turn, after one round that fills caches, starts workers and compiles."""
    benchmark.ours()
    benchmark.baseline()
    ours, baseline = [], []
    for _ in range(rounds):
        ours.append(benchmark.counts[0] / seconds_of(benchmark.ours, device))
        baseline.append(benchmark.counts[1] / seconds_of(benchmark.baseline, device))
    ratios = [a / b for a, b in zip(ours, baseline, strict=True)]
    medians = median(ours), median(baseline), median(ratios)
    extremes, every, figures = (min(ratios), max(ratios)), (tuple(ours), tuple(baseline)), benchmark.figures(median(ours))
    return Comparison(name, benchmark.what, benchmark.unit, *medians, *extremes, *every, figures)
