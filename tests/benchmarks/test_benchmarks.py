"""The pieces by themselves, timed by pytest-benchmark: `pytest tests/benchmarks`. Nothing here passes or fails by its time.

`--benchmark-autosave` keeps the figures and `--benchmark-compare` sets them beside the last ones.
"""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from avtcli.config import Plugin
from avtcli.core import knn
from avtcli.core.augment import to_float
from avtcli.core.keyed import keyed_generator
from avtcli.runs import baseline
from avtcli.runs.benches import data, step
from avtcli.runs.benches.jobs import prepare_small
from avtcli.runs.benches.timing import ON_CPU, Ground, Trial
from avtcli.runs.checkpoint import save_checkpoint
from avtcli.runs.families import build_family

Benchmark = Callable[..., Any]

GROUND = Ground(torch.device("cpu"), ON_CPU)
PROJECTIVE = build_family(Plugin(name="projective"))


def time_side(benchmark: Benchmark, trial: Trial, side: str) -> None:
    work, units = (trial.ours, trial.ours_count) if side == "ours" else (trial.baseline, trial.baseline_count)
    benchmark.group, benchmark.extra_info["units"] = f"{trial.what} ({trial.unit})", units  # type: ignore[attr-defined]
    benchmark(work)


@pytest.mark.parametrize("side", ["ours", "plain"])
@pytest.mark.parametrize(
    "measure",
    [
        data.measure_homographies,
        data.measure_warp_small,
        data.measure_warp_large,
        data.measure_pairs,
        step.measure_step_nin,
    ],
)
def test_beside_the_plain_way(benchmark: Benchmark, measure: Callable[[Ground], Trial], side: str) -> None:
    time_side(benchmark, measure(GROUND), side)


def test_warping_under_matrices_of_one_image_each(benchmark: Benchmark) -> None:
    parameters = PROJECTIVE.draw(1, (224, 224), keyed_generator("one"))
    benchmark(PROJECTIVE.apply, to_float(data.noise_images(1, 224)), parameters)


def test_one_plain_pair(benchmark: Benchmark) -> None:
    job = prepare_small(GROUND, images=2, batch_size=2)
    pairs: baseline.Pairs = data.plain_pairs(job, data.noise_images(2, 32))
    benchmark(pairs.__getitem__, 1)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_neighbours_of_1000_among_10000(benchmark: Benchmark, metric: knn.Metric) -> None:
    bank, queries = (torch.randn(n, 192, generator=keyed_generator("knn", n)) for n in (10_000, 1_000))
    benchmark(knn.nearest, bank, queries, 20, metric=metric)


def test_a_checkpoint_of_nin(benchmark: Benchmark, tmp_path: Path) -> None:
    model = prepare_small(GROUND, images=2, batch_size=2).net.state_dict()
    steps = count()
    benchmark(lambda: save_checkpoint(tmp_path, next(steps), model=model, state=model, about={}))
