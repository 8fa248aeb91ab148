"""Timing of two implementations of one task in turn, so that other load on the machine affects both."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import torch

from avtcli.config.components import Plugin

NIN: Final = Plugin(name="nin")
GPU_WORK: Final = {"batch_size": 512, "steps": 20, "warp_images": 512, "matmul_side": 8_192}  # enough to fill it


@dataclass(frozen=True)
class BenchConfig:
    """Settings of `avt bench`.

    `backbone` is that of `step`, `loop` and `probe`, `size_px` the side of their images and of those of `pairs`. `compile` and
    `precision` (auto, fp32, bf16 or fp16) apply to our training step; the baseline is eager, in fp32. `steps` and `warp_images`
    are those of a round, `matmul_side` is that of the square matrices whose product is the reference for GFLOP/s.
    """

    device: torch.device
    backbone: Plugin = NIN
    size_px: int = 32
    batch_size: int = 32
    compile: bool = False
    precision: str = "auto"
    steps: int = 1
    warp_images: int = 32
    matmul_side: int = 2_048

    @classmethod
    def build(cls, device: torch.device, **given: Any) -> "BenchConfig":
        """Fill in what is not given (None) with the defaults of the device."""
        defaults = {} if device.type == "cpu" else GPU_WORK
        return cls(device, **defaults | {name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Benchmark:
    """Two implementations of one task.

    A call of `ours` and one of `baseline` do `counts` units of work, complete once the device is synchronised. `figures` gives
    further figures after the last round, from our median rate.
    """

    what: str
    unit: str
    ours: Callable[[], object]
    baseline: Callable[[], object]
    counts: tuple[int, int]
    figures: Callable[[float], dict[str, Any]] = lambda rate: {}


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
