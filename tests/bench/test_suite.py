"""`avt bench`: every promised figure is there, and the two sides of a training step do the same."""

import math
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from avtcli.bench import step_benchmarks as step
from avtcli.bench.bench_setups import build_small_setup
from avtcli.bench.suite import MEASUREMENTS, BenchResult, bench, check_names, commit_of_checkout, cpu_name
from avtcli.bench.timing import BenchConfig, Benchmark, Scale, compare
from avtcli.errors import AvtError
from avtcli.events import Event, Progress
from avtcli.storage.files import to_json

TINY = Scale(
    homographies=2_000,
    plain_homographies=20,
    small=8,
    large=2,
    pairs=16,
    plain_pairs=8,
    pair_batch=8,
    batch=8,
    batch_large=2,
    steps=2,
    width=0.05,
    probed=20,
    matmul=64,
    checkpoint_mb=1,
)
GROUND = BenchConfig(torch.device("cpu"), TINY)


def tiny(*only: str, rounds: int = 2) -> BenchResult:
    return bench(only=only, rounds=rounds, device="cpu", scale=TINY, on_event=lambda event: None)


@pytest.mark.parametrize("name", sorted(set(MEASUREMENTS) - {"step-alexnet", "step-resnet18"}))
def test_each_measurement_gives_rates_ratios_and_their_spread(name: str) -> None:
    [found] = tiny(name).measurements

    assert found.name == name
    assert len(found.ours_rounds) == len(found.baseline_rounds) == 2
    assert min(*found.ours_rounds, *found.baseline_rounds) > 0
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.unit.endswith("/s")


@pytest.mark.slow
def test_alexnet_takes_steps_at_224_px() -> None:
    [found] = tiny("step-alexnet").measurements

    losses, plain = found.figures["losses"], found.figures["baseline_losses"]
    assert "1x224x224" in found.what
    # layouts round otherwise: over two images normalisation multiplies that, and each step builds on the last
    assert losses[0] == pytest.approx(plain[0], rel=1e-3)
    assert losses == pytest.approx(plain, rel=0.05)


def test_both_sides_of_a_training_step_have_the_same_losses() -> None:
    figures = tiny("step-nin").measurements[0].figures

    assert len(figures["losses"]) == 6  # two a round, and the round that warms up
    assert len(set(figures["losses"])) == 6
    assert figures["losses"][0] == pytest.approx(figures["baseline_losses"][0], rel=1e-5)
    assert figures["losses"] == pytest.approx(figures["baseline_losses"], rel=0.02)  # layouts round otherwise: see test_ways
    assert figures["largest_relative_difference"] < 0.02
    assert figures["precision"] == "fp32"
    assert figures["compile"] is False


def test_a_backbone_of_timm_takes_the_same_first_steps_on_both_sides() -> None:
    figures = tiny("step-resnet18", rounds=1).measurements[0].figures

    # later ones drift: the normalisation of eight maps of one cell multiplies what rounding began
    assert figures["losses"][:2] == pytest.approx(figures["baseline_losses"][:2], rel=1e-4)


def test_a_pair_of_the_published_network_takes_three_gflop() -> None:
    setup = build_small_setup(GROUND, images=2, batch_size=2)
    pair = next(step.make_pairs(setup, step.images_of(setup), epoch=0))

    # 253 M multiply-adds an image of three channels, 243 M of one; two views, forward and twice that backward, but for the
    # gradient of the first convolution's input, which nobody asks for
    assert step.flops_of_a_pair(setup.net, pair) == pytest.approx(2 * 2 * 3 * 243e6 - 2 * 2 * 4.9e6, rel=0.01)


def test_the_step_is_as_precise_as_asked_for() -> None:
    with pytest.raises(AvtError, match="fp16 training needs a GPU"):
        build_small_setup(replace(GROUND, precision="fp16"), images=2, batch_size=2)


def test_the_loop_tells_the_share_of_time_that_it_waits_for_data() -> None:
    figures = tiny("loop-narrow").measurements[0].figures

    assert 0 < figures["data_wait"] < 1
    assert 0 < figures["baseline_data_wait"] < 1


def test_a_document_of_json_says_where_it_was_measured() -> None:
    result = tiny("warp-32")
    document = asdict(result)

    assert document["environment"]["versions"]["torch"] == version("torch")
    assert document["environment"]["threads"] == torch.get_num_threads()
    assert document["environment"]["device"].startswith("cpu")
    assert document["rounds"] == 2
    assert document["cpus"] >= 1
    assert b'"warp-32"' in to_json(document)


def test_the_commit_is_that_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = commit_of_checkout()
    monkeypatch.setenv("PATH", "")

    assert commit is None or len(commit.removesuffix("-dirty")) == 40
    assert commit_of_checkout() is None  # no git


def test_the_processor_has_a_name() -> None:
    assert cpu_name()


def test_progress_is_told_by_measurement() -> None:
    events: list[Event] = []
    bench(only=["pairs", "warp-32"], rounds=1, device="cpu", scale=TINY, on_event=events.append)

    told = [(e.done, e.total, e.detail) for e in events if isinstance(e, Progress)]
    assert told == [(0, 2, "warp-32"), (1, 2, "pairs"), (2, 2, "")]


def test_an_unknown_measurement_is_refused_with_the_nearest_and_the_list() -> None:
    with pytest.raises(
        AvtError, match=r"No measurement is called 'step-nim'\. Did you mean 'step-nin'\? Known: homographies, "
    ):
        check_names(["pairs", "step-nim"])


def test_no_names_mean_all_measurements() -> None:
    assert check_names([]) == list(MEASUREMENTS)


def test_a_trial_alternates_its_sides_after_a_round_that_does_not_count() -> None:
    calls: list[str] = []
    benchmark = Benchmark("", "", lambda: calls.append("ours"), lambda: calls.append("plain"), 1, 1)

    compare("", benchmark, device=torch.device("cpu"), rounds=3)

    assert calls == ["ours", "plain"] * 4


def test_a_side_that_sleeps_three_times_as_long_has_a_third_of_the_rate() -> None:
    benchmark = Benchmark("", "x/s", lambda: time.sleep(0.05), lambda: time.sleep(0.15), 2, 2)

    found = compare("sleep", benchmark, device=torch.device("cpu"), rounds=3)

    assert found.ratio_high > 1.5  # a busy machine oversleeps
    assert found.ours <= 2 / 0.05
    assert found.baseline <= 2 / 0.15


def test_checkpoints_are_measured_where_runs_are_written_and_leave_nothing(tmp_path: Path) -> None:
    figures = tiny("checkpoint").measurements[0].figures

    assert len(figures["stall_seconds"]) == 2
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in figures["stall_seconds"])
    assert list(tmp_path.iterdir()) == []
