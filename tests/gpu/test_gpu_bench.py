"""`avt bench` on a GPU: the baseline is written as PyTorch's guides advise, and both sides have their figures."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from avtcli.bench import baseline
from avtcli.bench.bench_training import as_pair, autocast_type, baseline_pairs, baseline_step, first_batch, our_images
from avtcli.bench.benchmark_suite import bench
from avtcli.bench.benchmark_timing import BenchConfig
from avtcli.bench.roofline import work_per_pair
from avtcli.bench.training_benchmarks import build_step_setup
from avtcli.config.components import Plugin
from avtcli.events import ignore
from avtcli.training.training_setup import TrainingSetup

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CUDA = torch.device("cuda")
TINY = BenchConfig.build(
    CUDA,
    backbone=Plugin(name="nin", width=0.125),
    batch_size=32,
    compile=False,
    precision="bf16",
    steps=6,
    epoch_batches=4,
    probe_images=300,
    probe_batch=64,
    matmul_side=512,
    copy_bytes=2**24,
)


@pytest.fixture
def setup() -> TrainingSetup:
    return build_step_setup(TINY, batches=3)[0]


@contextmanager
def waiting_refused() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the mode, that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.02), ("bf16", 0.1)])
def test_both_sides_of_a_step_have_the_same_losses(precision: str, tolerance: float) -> None:
    [found] = bench(replace(TINY, precision=precision), only=["step"], rounds=2, on_event=ignore).measurements

    assert f"baseline: eager, {precision.replace('fp32', 'float32')}, channels last, " in found.what
    assert (found.figures["precision"], found.figures["compile"], found.figures["capture"]) == (precision, False, True)
    assert found.figures["loss_difference"] < tolerance


def test_the_peak_of_memory_holds_what_a_step_saves(setup: TrainingSetup) -> None:
    [found] = bench(TINY, only=["step"], rounds=1, on_event=ignore).measurements
    _, saved = work_per_pair(baseline_step(setup, autocast=torch.bfloat16), as_pair(first_batch(setup)))

    assert 32 * saved / 1e9 < found.figures["peak_memory_gb"] < 80
    assert 0 < found.figures["memory_share"] < 2  # small tensors stay in the cache
    assert found.figures["first_step_seconds"] > 0


def test_the_baseline_never_waits_for_the_gpu(setup: TrainingSetup) -> None:
    pair, step = as_pair(first_batch(setup)), baseline_step(setup, autocast=autocast_type(setup))
    step(pair)

    with waiting_refused():
        loss = step(pair)

    assert (loss.device.type, loss.shape) == ("cuda", ())


def test_the_baselines_network_is_channels_last(setup: TrainingSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = []
    monkeypatch.setattr(baseline, "train_step", lambda net, *rest, **named: nets.append(net))
    baseline_step(setup)(as_pair(first_batch(setup)))

    maps = [p for p in nets[0].parameters() if p.ndim == 4]
    assert maps
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in maps)


def test_the_baselines_pairs_come_to_the_gpu_unchanged(setup: TrainingSetup) -> None:
    images = our_images(setup).images
    pairs = baseline_pairs(setup, images, batch_size=16, workers=0)
    on_gpu = [next(pairs) for _ in range(5)]
    statistics = (values.tolist() for values in setup.family.statistics(setup.size))
    data, padding = setup.data, setup.config.augment.padding
    dataset = baseline.PairDataset(images.cpu(), padding, data.mean, data.std, *statistics, setup.config.seed)
    on_cpu = baseline.pair_batches(dataset, torch.device("cpu"), batch_size=16, workers=0)

    for pair, expected in zip(on_gpu, on_cpu, strict=False):
        assert all(part.is_cuda and torch.equal(part.cpu(), own) for part, own in zip(pair, expected, strict=True))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of the baseline's workers
@pytest.mark.parametrize("name", ["loop", "probe", "pairs"])
def test_the_other_benchmarks_of_a_network_run_on_the_gpu(name: str) -> None:
    [found] = bench(TINY, only=[name], rounds=2, on_event=ignore).measurements

    assert min(*found.ours_rounds, *found.baseline_rounds) > 0
    if name == "loop":
        assert 0 < found.figures["data_wait"] < 1
        assert 0 < found.figures["baseline_data_wait"] < 1
