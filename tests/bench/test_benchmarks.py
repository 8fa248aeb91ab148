"""`avt bench`: every benchmark has its figures, and both sides of a training step do the same."""

import multiprocessing
import os
import time
from dataclasses import asdict, replace
from importlib.metadata import version

import pytest
import torch

from avtcli.bench import bench_training, benchmark_suite
from avtcli.bench.bench_training import (
    as_pair,
    baseline_step,
    baseline_workers,
    build_bench_setup,
    first_batch,
    our_batches,
    our_images,
)
from avtcli.bench.benchmark_suite import BENCHMARKS, BenchResult, bench, check_names, commit_of_checkout, cpu_name
from avtcli.bench.benchmark_timing import BenchConfig, Benchmark, compare
from avtcli.bench.roofline import copy_gigabytes, saved_bytes, work_per_pair
from avtcli.bench.training_benchmarks import build_step_setup
from avtcli.config.components import Plugin
from avtcli.errors import AvtError, RunFailedError
from avtcli.events import Event, Progress, ignore
from avtcli.storage.files import to_json

CPU = torch.device("cpu")
NARROW = Plugin(name="nin", width=0.05)
TINY = BenchConfig(CPU, backbone=NARROW, batch_size=8, steps=2, warp_images=2, jpeg_images=4, matmul_side=64, copy_bytes=2**20)


def run(name: str, config: BenchConfig = TINY, *, rounds: int = 2) -> BenchResult:
    return bench(config, only=[name], rounds=rounds, on_event=ignore)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "processes" else []) for name in BENCHMARKS]
)
def test_each_benchmark_gives_rates_and_ratios(name: str) -> None:
    [found] = run(name).measurements

    assert found.name == name
    assert len(found.ours_rounds) == len(found.baseline_rounds) == 2
    assert min(*found.ours_rounds, *found.baseline_rounds) > 0
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.unit.endswith("/s")
    if name == "step":
        assert found.figures["gflops"] == pytest.approx(found.ours * found.figures["gflop_per_pair"])
        assert min(found.figures[name] for name in ("matmul_share", "memory_share", "first_step_seconds")) > 0
        assert "peak_memory_gb" not in found.figures
    if name == "processes":
        assert multiprocessing.active_children() == []
    if name == "jpeg":
        assert found.figures["share_of_pillow"] == pytest.approx(found.ours / found.figures["pillow"])
    if name == "loop":
        assert 0 < found.figures["data_wait"] < 1
        assert 0 < found.figures["baseline_data_wait"] < 1


def test_a_process_that_ends_fails_its_benchmark_and_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare_killed(name: str, benchmark: Benchmark, **more: object) -> None:
        multiprocessing.active_children()[0].kill()
        for side in (benchmark.ours, benchmark.baseline):
            side()

    monkeypatch.setattr(benchmark_suite, "compare", compare_killed)
    with pytest.raises(RunFailedError, match="A process of the benchmark ended"):
        run("processes")

    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("backbone", "size_px", "tolerance"),
    [
        (Plugin(name="nin", width=0.05), 32, 0.02),
        (Plugin(name="nin", width=0.05), 48, 0.02),
        (Plugin(name="timm:resnet18"), 32, 1e-3),
        pytest.param(Plugin(name="alexnet"), 224, 0.05, marks=pytest.mark.slow),
    ],
)
def test_both_sides_of_a_step_have_the_same_losses(backbone: Plugin, size_px: int, tolerance: float) -> None:
    few = backbone.name != "nin"  # rounding grows in the normalisation of few cells
    config = replace(TINY, backbone=backbone, size_px=size_px, steps=1 if few else 2)
    [found] = run("step", config, rounds=1 if few else 2).measurements

    assert f"{backbone.name}, 1x{size_px}x{size_px}, batch 8" in found.what
    assert found.figures["loss_difference"] < tolerance
    assert [found.figures[name] for name in ("precision", "compile", "capture")] == ["fp32", False, False]


def test_a_pair_of_the_published_network_takes_three_gflop() -> None:
    setup = build_bench_setup(BenchConfig(CPU), images=2, batch_size=2)
    flops, _ = work_per_pair(baseline_step(setup), as_pair(first_batch(setup)))

    # 243 M multiply-adds per image of one channel; two views, forward and twice that backward, without the gradient of the
    # first convolution's input
    assert flops == pytest.approx(2 * 2 * 3 * 243e6 - 2 * 2 * 4.9e6, rel=0.01)


def test_saved_bytes_are_those_of_each_storage_once() -> None:
    layer, x = torch.nn.Linear(10, 20), torch.randn(3, 10, requires_grad=True)

    # x and the weight; ReLU's output, which the square saves again, as a view
    assert saved_bytes(lambda: layer(x).relu().view(-1).square()) == 4 * (3 * 10 + 10 * 20 + 3 * 20)


def test_saved_bytes_per_pair_are_those_that_grow_with_the_batch() -> None:
    layer = torch.nn.Linear(10, 20)
    pair = torch.randn(8, 10), torch.randn(8, 10), torch.randn(8, 20)

    def step(part: tuple[torch.Tensor, ...]) -> None:
        ((layer(part[0]) - part[2]).square().sum() + layer(part[1]).sum()).backward()

    # both inputs and the difference; 2 x 10 x 20 multiply-adds for the outputs and for the gradient of the weight
    assert work_per_pair(step, pair) == (4 * 2 * 10 * 20, 4 * (10 + 10 + 20))


def test_reduced_precision_saves_fewer_bytes() -> None:
    setup = build_bench_setup(TINY, images=8, batch_size=8)
    pair = as_pair(first_batch(setup))
    [_, full], [_, half] = (work_per_pair(baseline_step(setup, autocast=t), pair) for t in (None, torch.bfloat16))

    assert 0.45 < half / full < 0.8  # the code and the losses stay in float32


def test_a_copy_of_a_larger_tensor_has_the_same_rate() -> None:
    rates = [copy_gigabytes(replace(TINY, copy_bytes=size)) for size in (2**25, 2**27)]

    assert 0.1 < rates[0] / rates[1] < 10


def test_images_are_repeated_to_an_epoch_of_full_batches() -> None:
    few, _ = build_step_setup(replace(TINY, batch_size=8), batches=3)
    many, _ = build_step_setup(replace(TINY, batch_size=500), batches=5)
    images = our_images(many).images

    assert (len(few.indices), few.steps_per_epoch) == (24, 3)
    assert (len(many.indices), many.steps_per_epoch, many.size) == (2500, 5, (32, 32))
    assert torch.equal(images[:500], images[2000:])
    assert torch.equal(many.data.train.labels[:500], many.data.train.labels[2000:])
    assert not torch.equal(images[0], images[1])
    assert torch.equal(our_images(build_bench_setup(TINY, images=2000, batch_size=8)).images, images[:2000])


def test_the_batch_of_a_step_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = build_bench_setup(TINY, images=16, batch_size=8)
    read = next(our_batches(setup, our_images(setup)))
    monkeypatch.setattr(bench_training, "our_batches", lambda *_: iter([read]))
    kept, before = first_batch(setup), [part.clone() for part in as_pair(read)]
    for tensor in (*as_pair(read), read.targets[0].parameters):
        tensor.zero_()

    assert all(torch.equal(a, b) for a, b in zip(as_pair(kept), before, strict=True))
    assert all(part.any() for part in (*before, kept.targets[0].parameters))


def test_the_step_has_the_precision_of_the_settings() -> None:
    with pytest.raises(AvtError, match="fp16 training needs a GPU"):
        build_bench_setup(replace(TINY, precision="fp16"), images=2, batch_size=2)


def test_defaults_depend_on_the_device() -> None:
    assert BenchConfig.build(CPU, batch_size=None, size_px=64) == BenchConfig(CPU, size_px=64)
    assert BenchConfig.build(torch.device("cuda"), batch_size=8, steps=None).steps == 100
    assert BenchConfig.build(torch.device("cuda"), batch_size=8).batch_size == 8
    assert (baseline_workers(CPU), min(16, len(os.sched_getaffinity(0)))) == (2, baseline_workers(torch.device("cuda")))


def test_the_json_has_the_environment() -> None:
    document = asdict(run("warp-224"))

    assert document["environment"]["versions"]["torch"] == version("torch")
    assert document["environment"]["threads"] == torch.get_num_threads()
    assert document["environment"]["device"].startswith("cpu")
    assert document["rounds"] == 2
    assert document["cpus"] >= 1
    assert b'"warp-224"' in to_json(document)


def test_the_commit_is_that_of_the_checkout_and_the_processor_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = commit_of_checkout()
    monkeypatch.setenv("PATH", "")

    assert commit is None or len(commit.removesuffix("-dirty")) == 40
    assert commit_of_checkout() is None  # no git
    assert cpu_name()


def test_progress_names_each_benchmark() -> None:
    events: list[Event] = []
    bench(TINY, only=["warp-224", "homographies"], rounds=1, on_event=events.append)

    progress = [(e.done, e.total, e.detail) for e in events if isinstance(e, Progress)]
    assert progress == [(0, 2, "homographies"), (1, 2, "warp-224"), (2, 2, "")]


def test_no_names_mean_all_benchmarks_and_an_unknown_one_is_refused() -> None:
    assert check_names([]) == list(BENCHMARKS)
    with pytest.raises(AvtError, match=r"No benchmark is called 'steps'\. Did you mean 'step'\? Known: homographies, "):
        check_names(["pairs", "steps"])


def test_a_benchmark_alternates_its_sides_after_a_warm_up() -> None:
    calls: list[str] = []
    benchmark = Benchmark("", "", lambda: calls.append("ours"), lambda: calls.append("baseline"), (1, 1))

    compare("", benchmark, device=CPU, rounds=3)

    assert calls == ["ours", "baseline"] * 4


def test_a_side_that_sleeps_three_times_as_long_has_a_third_of_the_rate() -> None:
    benchmark = Benchmark("", "x/s", lambda: time.sleep(0.05), lambda: time.sleep(0.15), (2, 2))

    found = compare("sleep", benchmark, device=CPU, rounds=3)

    assert found.ratio_high > 1.5  # a busy machine oversleeps
    assert found.ours <= 2 / 0.05
    assert found.baseline <= 2 / 0.15
