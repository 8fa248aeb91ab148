"""Evaluations while pretraining: what they measure, that they do not change training, and when a collapse is reported."""

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.optim.swa_utils import update_bn

from avtcli.contracts import MemorySplit
from avtcli.events import Event, Notice, Saved, ignore
from avtcli.features.transformed_pairs import corner_errors, predict, sample_pairs
from avtcli.runtime.signals import Stop
from avtcli.seeding import keyed_generator
from avtcli.storage.checkpoints import load_newest
from avtcli.storage.metrics_log import MetricsLog
from avtcli.training import collapse
from avtcli.training.collapse import Point, new_signs
from avtcli.training.monitor import Monitor, Outcome, measure_quality
from avtcli.training.run_log import Tracking
from avtcli.training.training_setup import TrainingSetup, build_training_setup
from tests.support import run_tiny, tiny_config, write_cifar10

TINY = "-o backbone.width=0.05 --limit-train 40 --batch-size 16 --device cpu"
DECAYED = "--lr 0.1 -o optimizer.name=sgd -o optimizer.momentum=0 -o optimizer.nesterov=no -o optimizer.weight_decay=5"
"""Every step halves every weight, so that all codes end as zeros, and the loss stays finite."""


@pytest.fixture
def setup() -> TrainingSetup:
    """A setup whose network is in eval mode."""
    coefficients = {"name": "projective", "target": "coefficients"}
    setup = build_training_setup(tiny_config(device="cpu", transform=coefficients), on_event=ignore)
    setup.net.eval()
    return setup


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run) if "eval" in line]


def drawn(count: int) -> torch.Tensor:
    """Indices in the order in which a limit draws them."""
    return torch.randperm(count, generator=keyed_generator("limit", count))


def notices(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({"epochs": 5, "eval_every": 2}, [(1, 0), (6, 2), (12, 4), (15, 5)]),
        ({"max_steps": 5, "eval_every": 1}, [(1, 0), (3, 1)]),  # not where a run ends within an epoch
    ],
)
def test_a_run_is_evaluated_after_the_first_step_and_every_n_epochs(
    tmp_path: Path, over: dict[str, int], expected: list[tuple[int, int]]
) -> None:
    run = run_tiny(tmp_path / "run", **over)

    assert [(line["step"], line["epoch"]) for line in evaluations(run)] == expected
    assert [line["step"] for line in lines(run) if "loss" in line] == list(range(1, over.get("max_steps", 15) + 1))


def test_evaluations_do_not_change_the_training(tmp_path: Path) -> None:
    plain, watched = run_tiny(tmp_path / "plain", eval_every=0), run_tiny(tmp_path / "watched", eval_every=1)

    for name in ("model.safetensors", "state.safetensors"):
        one, other = (run / "checkpoints" / "step-0000000009" / name for run in (plain, watched))
        assert one.read_bytes() == other.read_bytes()
    assert lines(plain) == [line for line in lines(watched) if "eval" not in line]
    results = [json.loads((run / "result.json").read_text()) for run in (plain, watched)]
    assert results[0]["mace_px"] == results[1]["mace_px"] == evaluations(watched)[-1]["eval"]["mace_px"]


def test_an_evaluation_leaves_the_network_as_it_was(setup: TrainingSetup, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in setup.net.state_dict().items()}
    setup.net.train()
    config = setup.config.model_copy(update={"eval_every": 1})
    metrics, tracking = MetricsLog(tmp_path / "log"), Tracking([], on_event=ignore)

    assert (
        Monitor(replace(setup, config=config), metrics, tracking, stop=Stop(), on_event=ignore).maybe_evaluate(1) == Outcome()
    )
    assert len(metrics.read()) == 1
    assert all(part.training for part in setup.net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in setup.net.state_dict().items())


def test_a_kill_between_evaluation_and_checkpoint_doubles_no_line(tmp_path: Path) -> None:
    whole, run = run_tiny(tmp_path / "whole", eval_every=1), run_tiny(tmp_path / "run", max_steps=5, eval_every=1)
    later = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(later[:9]))  # step 6 and its evaluation are logged, without a checkpoint
    run_tiny(run, resume=True, eval_every=1)

    assert (run / "metrics.jsonl").read_text() == "".join(later)


def test_a_resumed_run_may_be_evaluated_more_or_less_often(tmp_path: Path, avt) -> None:
    run = run_tiny(tmp_path / "run", max_steps=2, eval_every=0)

    assert avt(f"pretrain --resume {run} --max-steps 9 --eval-every 2 --json").code == 0
    assert [line["step"] for line in evaluations(run)] == [6, 9]


def test_the_neighbours_vote_as_scikit_learns_do(setup: TrainingSetup) -> None:
    """On the first 120 training images that a limit would draw, and 40 of the last 60."""

    def codes(rows: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            code = setup.net.encoder.features(setup.net.normalise(train.images[rows]), ["conv2"])["conv2"]
        return nn.functional.avg_pool2d(code, 2).flatten(1).numpy()  # 8x8 to 4x4

    train, order = setup.data.train, drawn(2000)
    bank, queries = order[:120], order[-60:].sort().values[drawn(60)[:40]]
    reference = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    reference.fit(codes(bank), train.labels[bank])
    expected = 100 * reference.score(codes(queries), train.labels[queries])

    assert 30 < expected < 90
    assert measure_quality(setup).knn_top1 == pytest.approx(expected)


def test_the_first_evaluation_is_of_the_training_images_statistics(setup: TrainingSetup, tmp_path: Path) -> None:
    """Later ones are compared with it: mean 0 and variance 1, where BatchNorm starts, would flatter them."""
    config, metrics = setup.config.model_copy(update={"eval_every": 1}), MetricsLog(tmp_path / "log")
    Monitor(replace(setup, config=config), metrics, Tracking([], on_event=ignore), stop=Stop(), on_event=ignore).maybe_evaluate(
        1
    )
    encoder, images = setup.net.encoder, setup.data.train.images[drawn(2000)[:120]]
    update_bn([encoder.normalise(images)], encoder)
    setup.net.eval()
    found, (expected,) = asdict(measure_quality(setup)), [line["eval"] for line in metrics.read()]

    for name in ("knn_top1", "rankme", "code_std"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    assert found["mace_px"] != expected["mace_px"]  # the decoder is measured as it is


def test_rank_and_deviation_are_those_of_the_average_pooled_code(setup: TrainingSetup) -> None:
    images = setup.data.train.images[drawn(2000)[:120]]
    with torch.no_grad():
        vectors = setup.net.encoder(setup.net.normalise(images)).mean((2, 3)).double().numpy()
    singular = np.linalg.svd(vectors, compute_uv=False)
    share = singular / singular.sum()
    found = measure_quality(setup)

    assert found.rankme == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-4)
    assert found.rankme_max == 10
    assert found.code_std == pytest.approx(vectors.std(0).mean() / np.sqrt((vectors**2).mean()), rel=1e-5)


@pytest.mark.parametrize("factor", [1e-30, 1e25])
def test_the_deviation_does_not_follow_the_scale_of_the_code(setup: TrainingSetup, factor: float) -> None:
    before = measure_quality(setup)
    last = setup.net.encoder.backbone.conv2[2][1]  # BatchNorm: with no statistics yet, its scale multiplies the code
    with torch.no_grad():
        last.weight.mul_(factor)
        last.bias.mul_(factor)

    assert measure_quality(setup).code_std == pytest.approx(before.code_std, rel=1e-4)


def test_a_code_of_zeros_has_no_deviation_and_the_least_rank(setup: TrainingSetup) -> None:
    nn.init.zeros_(setup.net.encoder.backbone.conv2[2][1].weight)
    found = measure_quality(setup)

    assert (found.code_std, round(found.rankme, 3)) == (0.0, 1.0)


def test_a_decoder_that_predicts_the_mean_has_the_constants_error(setup: TrainingSetup) -> None:
    """Under the same transformations: other ones would differ by some percent."""
    nn.init.zeros_(setup.net.objective.decoder.mean_head.weight)
    found = measure_quality(setup)

    assert found.mace_px == pytest.approx(found.constant_mace_px, rel=4e-3)


def test_pairs_of_images_that_cannot_be_used_are_left_out(setup: TrainingSetup) -> None:
    """The corner error is the mean over those that are left, under the transformations that they have anyway."""
    setup = replace(setup, monitored=torch.arange(20))
    pairs = sample_pairs(
        setup.open_for_evaluation(setup.monitored), setup.family, setup.size, key=(setup.config.seed, "held out")
    )
    errors = corner_errors(pairs, predict(setup.net, pairs, task="x", on_event=ignore)[0])
    before = measure_quality(setup)
    setup.bad_images.allowed = 2
    setup.bad_images.add({0: "broken", 7: "broken"})
    after = measure_quality(setup)

    assert before.mace_px == pytest.approx(errors.mean().item())
    assert after.mace_px == pytest.approx(errors[[i for i in range(20) if i not in (0, 7)]].mean().item())
    assert after.constant_mace_px != before.constant_mace_px
    assert setup.evaluated_on.startswith("18 ")


def test_the_constants_error_is_that_of_the_published_distribution(setup: TrainingSetup) -> None:
    """23.5 px over 400 000 draws; 1 000 are within half a pixel, three standard errors."""
    found = measure_quality(replace(setup, monitored=torch.arange(1000)))

    assert found.constant_mace_px == pytest.approx(23.5, abs=0.5)


def test_a_code_that_is_not_finite_leaves_figures_out_and_fails_nothing(setup: TrainingSetup) -> None:
    nn.init.constant_(setup.net.encoder.backbone.conv2[2][1].bias, math.inf)
    found = measure_quality(setup)

    assert (found.knn_top1, found.rankme, found.code_std, found.mace_px) == (None, None, None, None)
    json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize("place", [0, -1], ids=["in the bank", "in all queries"])
def test_an_image_without_a_label_leaves_the_neighbours_out(setup: TrainingSetup, place: int) -> None:
    labels = setup.data.train.labels.clone()
    labels[drawn(2000)[:1] if place == 0 else setup.monitored] = -1
    partly = MemorySplit(setup.data.train.images, labels, prefix="train")
    found = measure_quality(replace(setup, data=replace(setup.data, train=partly)))

    assert found.knn_top1 is None
    assert found.rankme is not None


def test_labels_of_one_class_leave_the_neighbours_out(setup: TrainingSetup) -> None:
    alike = MemorySplit(setup.data.train.images, torch.full_like(setup.data.train.labels, 3), prefix="x")

    assert measure_quality(replace(setup, data=replace(setup.data, train=alike))).knn_top1 is None


def test_without_labels_the_other_figures_remain(setup: TrainingSetup) -> None:
    unlabelled = MemorySplit(setup.data.train.images, None, prefix="x")
    found = measure_quality(replace(setup, data=replace(setup.data, train=unlabelled)))

    assert found.knn_top1 is None
    assert found.rankme > 1
    assert found.mace_px > 10


@pytest.mark.parametrize(
    "over", [{"transform": {"name": "photometric"}}, {"transform": {"name": "rotation"}, "objective": {"name": "rotnet"}}]
)
def test_what_has_no_corners_to_decode_has_no_corner_error(tmp_path: Path, over: dict[str, Any]) -> None:
    events = list[Event]()
    run = run_tiny(tmp_path / "run", max_steps=3, eval_every=1, on_event=events.append, **over)

    figures = evaluations(run)[-1]["eval"]
    assert (figures["mace_px"], figures["constant_mace_px"]) == (None, None)
    assert figures["knn_top1"] > 20
    assert any(re.fullmatch(r"epoch 1: k-NN [\d.]+ % .*", text) for text in notices(events))
    assert json.loads((run / "result.json").read_text())["mace_px"] is None


def test_each_evaluation_is_one_line_after_its_checkpoint(tmp_path: Path) -> None:
    events = list[Event]()
    run_tiny(tmp_path / "run", eval_every=3, on_event=events.append)

    number = r"\d+\.\d"
    events = [e for e in events if isinstance(e, Saved) or (isinstance(e, Notice) and e.text.startswith("epoch "))]
    assert [type(event) for event in events] == [Saved, Notice, Saved, Notice]
    first, last = notices(events)
    expected = rf"epoch 0: MACE {number} px \(constant {number}\)  k-NN {number} %  RankMe {number}/10  code std 0\.\d\d\d"
    assert re.fullmatch(expected, first)
    assert re.fullmatch(rf"epoch 3: MACE .*  k-NN {number} % \([+-]{number}\)  RankMe .*", last)


# collapse


def point(step: int, *, mace: float | None = 15.0, rankme: float | None = 5.0, code_std: float | None = 0.2) -> Point:
    """An evaluation of a run with 50 steps an epoch."""
    figures = {"mace_px": mace, "constant_mace_px": 23.5, "knn_top1": 70.0, "rankme": rankme, "rankme_max": 48}
    return {"step": step, "epoch": step // 50, "eval": {**figures, "code_std": code_std}}


FIRST = point(0, mace=24.0, rankme=2.3, code_std=0.19)


def signs(*points: Point, **over: Any) -> list[str]:
    return new_signs(points, config=tiny_config(**{"epochs": 20, "batch_size": 128, **over}), steps_per_epoch=50)


@pytest.mark.parametrize(
    ("now", "figures"),
    [
        (point(50, code_std=0.0018), r"code std 0\.0018 \(at first 0\.19\)"),
        (point(50, rankme=1.06), r"RankMe 1\.1 \(at first 2\.3\)"),
        (point(50, code_std=None, rankme=None), r"code std not finite \(at first 0\.19\), RankMe not finite"),
    ],
)
def test_a_collapsed_code_is_reported_with_its_figures_and_advice(now: Point, figures: str) -> None:
    (sign,) = signs(FIRST, now)

    assert re.search(rf"^Collapse at epoch 1: all images have nearly one code, .*{figures}", sign)
    assert re.search(r"\. Try a lower rate, as `--lr 0\.0004`, a smaller transformation .* or another --objective\.$", sign)


def test_each_sign_is_reported_once_in_a_run() -> None:
    flat, constant = point(50, code_std=0.0), point(2000, mace=23.4, code_std=0.0)

    assert len(signs(FIRST, flat)) == 1
    assert signs(FIRST, flat, flat) == []
    assert [text.split(",")[0] for text in signs(FIRST, flat, constant, constant)] == [
        "Nothing learned by epoch 40: the decoder is no better than a constant prediction"
    ]
    assert signs(FIRST, flat, constant, constant, constant) == []


def test_a_decoder_at_the_constants_error_twice_in_a_row_is_reported() -> None:
    constant = [point(step, mace=23.3) for step in (1000, 1500)]
    (sign,) = signs(FIRST, *constant)

    assert "MACE 23.3 px at epoch 20 and 23.3 px now, the constant's 23.5 px. Try another rate (`--lr`, now 0.004)" in sign
    assert signs(FIRST, point(1000, mace=22.9), constant[1]) == []
    assert signs(FIRST, point(1000, mace=None), constant[1]) == []


@pytest.mark.parametrize(
    ("settled", "over"),
    [
        (300, {"batch_size": 1000}),
        (6250, {"batch_size": 16}),
        (3000, {"epochs": 600, "batch_size": 1000}),
        (500, {"schedule": {"warmup": 0.5}, "batch_size": 1000}),
        (300, {"schedule": {"warmup": 0.5, "pieces": [{"start": 0, "rate": 0.1}]}, "batch_size": 1000}),
    ],
    ids=["300 steps", "100 000 pairs", "a tenth of the run", "warm-up", "pieces warm nothing up"],
)
def test_a_decoder_is_not_judged_before_the_run_has_settled(settled: int, over: dict[str, Any]) -> None:
    def constant(step: int) -> list[Point]:
        return [FIRST, point(step, mace=23.3), point(step + 50, mace=23.3)]

    assert signs(*constant(settled - 1), **over) == []
    assert len(signs(*constant(settled), **over)) == 1


def test_random_weights_and_an_unlucky_start_are_no_collapse() -> None:
    assert signs(point(0, mace=30.0, rankme=1.0, code_std=1e-6)) == []
    assert signs(FIRST, point(50, mace=1100.0, rankme=1.4, code_std=0.04)) == []
    assert signs(point(0, rankme=300.0, code_std=0.9), point(50, rankme=3.0, code_std=0.1)) == []


@pytest.mark.slow
def test_a_healthy_run_has_no_sign_even_when_judged_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse, "SETTLED_STEPS", 50)
    monkeypatch.setattr(collapse, "SETTLED_PAIRS", 100 * 32)
    over = {"backbone": {"width": 0.2}, "limit_train": 256, "batch_size": 32, "epochs": 24, "schedule": {"rate": 4e-3}}
    over["transform"] = {"name": "projective", "target": "coefficients"}  # learnt in fewer steps than turns and offsets
    run = run_tiny(tmp_path / "run", **over, eval_every=6, stop_on_collapse=True)  # a sign would be an error

    last = evaluations(run)[-1]
    assert last["step"] == 192
    assert last["eval"]["mace_px"] < 0.9 * last["eval"]["constant_mace_px"]


def test_adamw_at_a_rate_of_10_is_a_collapse(tmp_path: Path) -> None:
    events = list[Event]()
    over = {"objective": {"name": "aet"}, "schedule": {"rate": 10.0}, "epochs": 12, "eval_every": 1}
    run = run_tiny(tmp_path / "run", on_event=events.append, **over)

    assert sum("all images have nearly one code" in text for text in notices(events)) == 1
    assert all(math.isfinite(line["loss"]) for line in lines(run) if "loss" in line)


def test_a_collapse_is_reported_and_the_run_goes_on(avt) -> None:
    result = avt(f"pretrain {TINY} {DECAYED} --epochs 9 --eval-every 4 --out run")

    assert result.code == 0
    assert result.stderr.count("Collapse at epoch ") == 1
    sign = r"epoch 4: all images have nearly one code, code std 0 \(at first 0\.\d+\), RankMe 1\.0 \(at first \d\.\d\)\."
    assert re.search(sign, result.stderr)
    assert evaluations(Path("run"))[-1]["step"] == 27


def test_a_run_that_stops_at_a_collapse_saves_and_may_be_resumed(avt) -> None:
    result = avt(f"pretrain {TINY} {DECAYED} --epochs 9 --eval-every 4 --stop-on-collapse --out run")

    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.count("all images have nearly one code, code std 0 (at first 0.") == 1
    assert result.stderr.endswith(
        f"Stopped. The state after step 12 is saved in run. Go on with:\n  avt pretrain --resume {Path('run').absolute()}\n"
    )
    assert load_newest(Path("run/checkpoints")).about["step"] == 12
    assert not Path("run/result.json").exists()
    assert avt("pretrain --resume run --json").json["steps"] == 27


def test_a_rate_that_moves_nothing_shows_in_the_decoders_error(avt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse, "SETTLED_STEPS", 3)
    monkeypatch.setattr(collapse, "SETTLED_PAIRS", 48)
    result = avt(f"pretrain {TINY} --lr 1e-12 --epochs 4 --eval-every 1 --stop-on-collapse --out run")

    assert result.code == 1
    sign = r"Nothing learned by epoch 2: the decoder is no better than a constant prediction, MACE [23]\d"
    assert re.search(sign, result.stderr)
    assert "Try another rate (`--lr`, now 1e-12)" in result.stderr


def test_stopping_at_a_collapse_without_evaluations_is_refused(avt) -> None:
    result = avt(f"pretrain {TINY} --eval-every 0 --stop-on-collapse --out run")

    assert result.code == 2
    assert "only an evaluation detects a collapse: set eval_every above 0" in result.stderr
    assert not Path("run").exists()


@pytest.mark.slow
def test_two_processes_evaluate_once_and_stop_together(avt_process) -> None:
    write_cifar10(Path("data"))  # 60 images: the other process does not see how few this one would take
    line = f"pretrain --dataset cifar10 --recipe default {TINY} {DECAYED} --epochs 8 --eval-every 4 --stop-on-collapse"
    result = avt_process(f"{line} --out run --processes 2")

    assert result.code == 1, result.stderr
    assert [line["step"] for line in evaluations(Path("run"))] == [1, 12]
    assert result.stderr.count("epoch 0: MACE") == 1
    assert "all images have nearly one code" in result.stderr
    assert load_newest(Path("run/checkpoints")).about["step"] == 12
