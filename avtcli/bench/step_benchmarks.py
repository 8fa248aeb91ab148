"""Benchmarks of the training step and of the loop around it."""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from avtcli.bench import baseline
from avtcli.bench.bench_training import (
    BUNDLED_IMAGES,
    Step,
    baseline_pairs,
    baseline_step,
    build_bench_setup,
    our_pairs,
    our_step,
    resident_images,
)
from avtcli.bench.benchmark_timing import BenchConfig, Benchmark, seconds_of, synchronise
from avtcli.seeding import keyed_generator
from avtcli.training.training_setup import TrainingSetup

WORKERS = 2
"""Worker processes of the baseline's DataLoader."""
EPOCH_BATCHES = 3
"""Batches per epoch at most, so that a measured loop begins epochs."""
MATMULS = 5
"""Timed matrix products."""


def build_step_setup(config: BenchConfig) -> tuple[TrainingSetup, str]:
    """Build the setup of `step` and `loop`, and describe it."""
    batch = config.batch_size
    images = batch * min(EPOCH_BATCHES, BUNDLED_IMAGES // batch)  # no partial batch
    setup = build_bench_setup(config, images=images, batch_size=batch)
    return setup, f"{config.backbone.name}, {setup.spec.channels}x{setup.size[0]}x{setup.size[1]}, batch {batch}"


def measure_step(config: BenchConfig) -> Benchmark:
    """One training step on the same pair again and again; both sides start from the same weights."""
    (setup, description), steps, batch = build_step_setup(config), config.steps, config.batch_size
    pair = next(our_pairs(setup, resident_images(setup)))
    flops = flops_per_pair(setup, pair)
    losses, baseline_losses = list[Tensor](), list[float]()
    ours, theirs = our_step(setup, losses), baseline_step(setup, baseline_losses)

    def figures(rate: float) -> dict[str, Any]:
        difference = max(abs(a.item() - b) for a, b in zip(losses, baseline_losses, strict=True))
        gflops = rate * flops / 1e9
        return {
            "loss_difference": difference / max(map(abs, baseline_losses)),  # single losses may be near 0
            "gflop_per_pair": flops / 1e9,
            "gflops": gflops,
            "matmul_share": gflops / matmul_gflops(config, setup.accelerator.mixed_precision),
            "precision": setup.accelerator.mixed_precision.replace("no", "fp32"),
            "channels_last": setup.config.channels_last,
            "compile": setup.config.compile,
        }

    return Benchmark(
        what=f"training step of {description}; baseline: eager, float32, from the same weights and pairs",
        unit="pairs/s",
        ours=lambda: [ours(pair) for _ in range(steps)],
        baseline=lambda: [theirs(pair) for _ in range(steps)],
        ours_count=steps * batch,
        baseline_count=steps * batch,
        figures=figures,
    )


def flops_per_pair(setup: TrainingSetup, pair: baseline.Pair) -> float:
    """Count the floating-point operations of convolutions and matrix products in a training step, per pair."""
    original, transformed, target = (part[:2] for part in pair)
    step = baseline_step(setup, [])
    with FlopCounterMode(display=False) as counter:
        step((original, transformed, target))
    total: int = counter.get_total_flops()
    return total / len(original)


def matmul_gflops(config: BenchConfig, mixed_precision: str) -> float:
    """Measure the GFLOP/s of a large matrix product in the precision of the training step."""
    side, dtype = config.matmul_side, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision)
    matrix = torch.randn(side, side, generator=keyed_generator("bench", "matmul")).to(config.device, dtype)
    seconds = [seconds_of(lambda: matrix @ matrix, config.device) for _ in range(1 + MATMULS)]
    return 2 * side**3 / 1e9 / median(seconds[1:])


def measure_loop(config: BenchConfig) -> Benchmark:
    """Make pairs and train on them."""
    (setup, description), steps, batch = build_step_setup(config), config.steps, config.batch_size
    images = resident_images(setup)
    waits: dict[str, list[tuple[float, float]]] = {"ours": [], "baseline": []}

    def run(side: str, pairs: Iterator[baseline.Pair], step: Step) -> Callable[[], None]:
        def work() -> None:
            began, waited = time.perf_counter(), 0.0
            for _ in range(steps):
                asked = time.perf_counter()
                pair = next(pairs)
                waited += time.perf_counter() - asked
                step(pair)
            synchronise(config.device)
            waits[side].append((waited, time.perf_counter() - began))

        return work

    items = baseline_pairs(setup, images.images, batch_size=batch, workers=WORKERS)
    theirs = baseline_step(setup, [])
    return Benchmark(
        what=f"pairs and training step of {description}; baseline: a DataLoader of {WORKERS} workers",
        unit="pairs/s",
        ours=run("ours", our_pairs(setup, images), our_step(setup, [])),
        baseline=run("baseline", items, theirs),
        ours_count=steps * batch,
        baseline_count=steps * batch,
        figures=lambda rate: {"data_wait": _share(waits["ours"]), "baseline_data_wait": _share(waits["baseline"])},
    )


def _share(waits: list[tuple[float, float]]) -> float:
    """The share of time spent waiting, without the warm-up round."""
    return sum(waited for waited, _ in waits[1:]) / sum(seconds for _, seconds in waits[1:])
