"""Two ways to do the same, timed in turn, so that whatever else the machine does hits both."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Scale:
    """How much each measurement does in a round.

    Attributes:
        homographies: drawn in one call by ours.
        plain_homographies: drawn one by one by the baseline.
        small: images of 32 px to warp.
        large: images of 224 px to warp.
        pairs: that ours makes, in batches: an epoch of them. One of 1 024 still shows the start of an epoch, a twentieth.
        plain_pairs: that the baseline makes, whole batches.
        pair_batch: pairs that ours makes at once.
        batch: images of 32 px in a training step.
        batch_large: images of 224 px in a training step.
        steps: of training.
        width: of NIN, as a multiplier of its channels; the narrow loop takes a quarter of it.
        probed: images that a head is trained on.
        matmul: side of the square matrices whose product stands for the peak.
        checkpoint_mb: megabytes in a checkpoint.
    """

    homographies: int = 500_000
    plain_homographies: int = 1_000
    small: int = 512
    large: int = 32
    pairs: int = 1_920
    plain_pairs: int = 256
    pair_batch: int = 128
    batch: int = 32
    batch_large: int = 8
    steps: int = 1
    width: float = 1.0
    probed: int = 256
    matmul: int = 2_048
    checkpoint_mb: int = 100


ON_CPU = Scale()
ON_GPU = Scale(small=4_096, large=512, batch=512, batch_large=128, steps=20, probed=2_000, matmul=8_192)


@dataclass(frozen=True)
class BenchConfig:
    """Where and how to measure: a device, how much to do, whether our step is compiled, and its precision as asked for."""

    device: torch.device
    scale: Scale
    compile: bool = False
    precision: str = "auto"


@dataclass(frozen=True)
class Benchmark:
    """Two ways to do the same.

    Attributes:
        what: in words, for the table's foot.
        unit: of the rates.
        ours: does `ours_count` units of the work, or has them done by the time that the device is synchronised.
        baseline: likewise.
        ours_count: units in one call.
        baseline_count: units in one call.
        figures: asked after the last round for more than rates.
    """

    what: str
    unit: str
    ours: Callable[[], object]
    baseline: Callable[[], object]
    ours_count: float
    baseline_count: float
    figures: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Comparison:
    """What came out of a benchmark.

    Attributes:
        name: of the measurement.
        what: in words.
        unit: of the rates, such as pairs/s.
        ours: the median rate.
        baseline: the median rate.
        ratio: ours / baseline, the median of the rounds' own ratios.
        ratio_low: the smallest of them.
        ratio_high: the largest of them.
        ours_rounds: the rate in each round.
        baseline_rounds: the rate in each round.
        figures: whatever else the measurement tells.
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
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """The seconds that one call takes, until the device has finished."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def compare(name: str, benchmark: Benchmark, *, device: torch.device, rounds: int) -> Comparison:
    """Time both ways in turn: ours, baseline, ours, baseline and so on, after one round that does not count.

    The first round fills caches, starts worker processes and compiles.
    """
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
        figures=benchmark.figures(),
    )
