"""Timing of two implementations of one task in turn, so that other load on the machine affects both."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import torch

from avtcli.config.components import Plugin

NIN: Final = Plugin(name="nin")
GPU_WORK: Final = {"batch_size": 512, "steps": 20, "warp_images": 512, "matmul_side": 8_192}
"""How much each round does on a GPU, where more is needed to fill it."""


@dataclass(frozen=True)
class BenchConfig:
    """Settings of `avt bench`.

    Attributes:
        device: compute device.
        backbone: network of `step`, `loop` and `probe`.
        size_px: side of the images of `pairs`, `step`, `loop` and `probe`.
        batch_size: pairs per training step.
        compile: whether our training step is compiled.
        precision: of our training step: auto, fp32, bf16 or fp16; the baseline's is fp32.
        steps: training steps per round.
        warp_images: images to warp per round.
        matmul_side: side of the square matrices whose product is the reference for GFLOP/s.
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

    `ours` and `baseline` do `ours_count` and `baseline_count` units of work, complete once the device is synchronised.
    `figures` gives further figures after the last round, from our median rate.
    """

    what: str
    unit: str
    ours: Callable[[], object]
    baseline: Callable[[], object]
    ours_count: int
    baseline_count: int
    figures: Callable[[float], dict[str, Any]] = lambda rate: {}


@dataclass(frozen=True)
class Comparison:
    """Result of a benchmark: units per second, and the ratios ours / baseline.

    `ours`, `baseline` and `ratio` are medians over the rounds, `ratio_low` and `ratio_high` the extremes.
    """

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
        ours.append(benchmark.ours_count / seconds_of(benchmark.ours, device))
        baseline.append(benchmark.baseline_count / seconds_of(benchmark.baseline, device))
    ratios = [a / b for a, b in zip(ours, baseline, strict=True)]
    return Comparison(
        name=name,
        what=benchmark.what,
        unit=benchmark.unit,
        ours=median(ours),
        baseline=median(baseline),
        ratio=median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        ours_rounds=tuple(ours),
        baseline_rounds=tuple(baseline),
        figures=benchmark.figures(median(ours)),
    )
