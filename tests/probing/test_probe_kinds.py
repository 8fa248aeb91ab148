"""Probes other than trained heads on frozen features: neighbours, ridge, fine-tuning, several data sets, no run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.optim.swa_utils import update_bn

from avtcli.config.components import Plugin
from avtcli.config.resolution import resolve_probe
from avtcli.contracts import MemorySplit
from avtcli.data.datasets import build_data
from avtcli.data.held_out import limited
from avtcli.errors import AvtError
from avtcli.events import Event, Notice
from avtcli.features import evaluation_target
from avtcli.features.feature_cache import extract
from avtcli.features.pooling import pool_features
from avtcli.models.encoder import Encoder
from avtcli.models.model_building import build_encoder
from avtcli.models.weights import Weights, restore_encoder
from avtcli.probing import encoder_probing
from avtcli.probing.head_training import train_heads
from avtcli.probing.probe_setup import split_held_out, subset_rows
from tests.support import run_probe, write_idx

MINI = {"limit_train": 200, "layers": ("conv2",), "baseline": False}


@pytest.fixture(scope="module")
def pooled(source: Weights) -> dict[str, tuple[Tensor, Tensor]]:
    """Features of the 200 training and the 1 000 test images as a probe of conv2 reads them, and the labels."""
    data, encoder = build_data(Plugin(name="fashion-mini"), None), restore_encoder(source)
    assert data.test is not None
    out = {}
    for part, split, rows in (("train", data.train, limited(torch.arange(2000), 200)), ("test", data.test, torch.arange(1000))):
        with torch.no_grad():
            codes = encoder(encoder.normalise(split.images[rows]))
        out[part] = (pool_features(codes, "max", 4).flatten(1), split.labels[rows])
    return out


# all features of a probe


def test_heads_trained_together_do_as_each_does_alone(source: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Any] = []
    monkeypatch.setattr(encoder_probing, "train_heads", lambda *a, **k: (plans.append(a[2]), train_heads(*a, **k))[1])
    settings = {**MINI, "layers": ("conv1", "conv2", "classifier"), "pool": ("max", "avg"), "epochs": 3, "rates": (0.1, 0.01)}
    together = run_probe(source, **settings)
    monkeypatch.setattr(encoder_probing, "has_room", lambda *a: False)
    alone = run_probe(source, **settings)

    assert [len(each) for each in plans] == [10, 5] + [2, 1] * 5  # the rates, then the heads; a vector is not pooled
    assert together.results == alone.results


# nearest neighbours and ridge


@pytest.mark.parametrize("temperature", [0.07, 0.0])
def test_neighbours_vote_as_in_scikit_learn(
    source: Weights, pooled: dict[str, tuple[Tensor, Tensor]], temperature: float
) -> None:
    (head,) = run_probe(source, **MINI, head={"name": "knn", "k": (7,), "temperature": temperature}).results
    weights = (lambda distances: torch.tensor(1 - distances).div(temperature).exp().numpy()) if temperature else "uniform"
    oracle = KNeighborsClassifier(7, metric="cosine", algorithm="brute", weights=weights)
    oracle.fit(*(t.double().numpy() for t in pooled["train"]))

    assert head.top1 == pytest.approx(100 * oracle.score(*(t.double().numpy() for t in pooled["test"])), abs=0.2)
    assert (head.val_top1, head.chosen, head.top1_best_test_epoch) == (None, {"k": 7}, None)


def test_the_number_of_neighbours_is_the_best_on_held_out_training_images(
    source: Weights, pooled: dict[str, tuple[Tensor, Tensor]]
) -> None:
    (head,) = run_probe(source, **MINI, head={"name": "knn", "k": "1,5,100"}).results
    features, labels = (t.double().numpy() for t in pooled["train"])
    fit, held = (rows.numpy() for rows in split_held_out(torch.arange(200), pooled["train"][1], seed=0))
    scores = {}
    for k in (1, 5, 100):
        oracle = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda d: torch.tensor((1 - d) / 0.07).exp().numpy()
        )
        scores[k] = 100 * oracle.fit(features[fit], labels[fit]).score(features[held], labels[held])

    assert head.chosen == {"k": max(scores, key=lambda k: scores[k])}
    assert head.val_top1 == pytest.approx(max(scores.values()))


def test_ridge_is_that_of_scikit_learn_on_standardised_features(
    source: Weights, pooled: dict[str, tuple[Tensor, Tensor]]
) -> None:
    (head,) = run_probe(source, **MINI, head={"name": "ridge", "penalties": (0.1,)}).results
    features, labels = pooled["train"][0].double(), pooled["train"][1]
    mean, std = features.mean(0), features.std(0, correction=0)
    std[std == 0] = 1
    oracle = Ridge(0.1 * 200).fit(((features - mean) / std).numpy(), torch.nn.functional.one_hot(labels).double().numpy())
    predicted = oracle.predict(((pooled["test"][0].double() - mean) / std).numpy()).argmax(1)

    assert head.top1 == pytest.approx(100 * (torch.from_numpy(predicted) == pooled["test"][1]).double().mean().item(), abs=0.2)
    assert head.chosen == {"penalty": 0.1}


def test_logistic_regression_is_that_of_scikit_learn_at_the_penalty_that_held_out_images_choose(
    source: Weights, pooled: dict[str, tuple[Tensor, Tensor]]
) -> None:
    penalties = (1e-4, 0.03, 3.0)
    (head,) = run_probe(source, **MINI, head={"name": "logistic", "penalties": penalties}).results
    features, labels = (t.double().numpy() for t in pooled["train"])
    fit, held = (rows.numpy() for rows in split_held_out(torch.arange(200), pooled["train"][1], seed=0))

    def oracle(rows: Any, penalty: float) -> Pipeline:
        classifier = LogisticRegression(C=1 / (penalty * len(rows)), max_iter=10_000, tol=1e-8)
        return make_pipeline(StandardScaler(), classifier).fit(features[rows], labels[rows])

    scores = {penalty: 100 * oracle(fit, penalty).score(features[held], labels[held]) for penalty in penalties}
    best = max(penalties, key=lambda penalty: (scores[penalty], penalty))
    expected = oracle(range(200), best).score(*(t.double().numpy() for t in pooled["test"]))

    assert head.chosen == {"penalty": best}
    assert head.val_top1 == pytest.approx(scores[best])
    assert head.top1 == pytest.approx(100 * expected, abs=0.2)


def test_more_neighbours_than_images_are_all_of_them(source: Weights) -> None:
    (head,) = run_probe(source, **MINI, head={"name": "knn", "k": (500,)}, shots=(1,)).results

    assert head.chosen == {"k": 10}  # of one image a class none can be held out
    assert head.val_top1 is None


@pytest.mark.parametrize(("k", "tried", "used"), [((500,), [200], 200), ((5, 90, 500), [5, 90, 100], None)])
def test_the_protocol_states_the_neighbours_that_there_are(
    source: Weights, k: tuple[int, ...], tried: list[int], used: int | None
) -> None:
    """Of 200 images, 100 are held out where there is a choice."""
    result = run_probe(source, **MINI, head={"name": "knn", "k": k})

    assert result.protocol["head"]["k"] == tried
    assert result.protocol["chosen"] == (None if used else {"k": tried, "held_out": [100], "steps": None})
    assert result.protocol["used"] == {"k": [used or result.results[0].chosen["k"]]}


def relabel(monkeypatch: pytest.MonkeyPatch, part: str, change: Callable[[Tensor], Tensor]) -> None:
    """Probes see fashion-mini with the labels of one part changed."""
    data = build_data(Plugin(name="fashion-mini"), None)
    split = getattr(data, part)
    changed = replace(data, **{part: MemorySplit(split.images, change(split.labels), prefix=part)})
    monkeypatch.setattr(evaluation_target, "build_data", lambda *args, **named: changed)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("head", ["linear", "knn", "logistic", "ridge"])
def test_images_without_a_label_are_refused(source: Weights, monkeypatch: pytest.MonkeyPatch, part: str, head: str) -> None:
    relabel(monkeypatch, part, lambda labels: torch.cat([torch.full((7,), -1), labels[7:]]))
    with pytest.raises(AvtError, match=rf"7 of the \d+ {part} images of 'fashion-mini' have no label \(-1\)"):
        run_probe(source, layers=("conv2",), baseline=False, head=head)


@pytest.mark.parametrize("head", ["linear", "knn", "logistic", "ridge"])
def test_one_class_is_refused(source: Weights, monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    relabel(monkeypatch, "train", lambda labels: torch.full_like(labels, 3))
    with pytest.raises(AvtError, match="All 200 training images of 'fashion-mini' are of one class: a probe needs two"):
        run_probe(source, **MINI, head=head)


def test_images_of_classes_that_no_head_knows_are_errors_and_reported(source: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 1 000 test images have 10 classes of 100."""
    whole = run_probe(source, **MINI, head="knn").results[0]
    relabel(monkeypatch, "test", lambda labels: torch.where(labels < 3, labels + 10, labels))
    events: list[Event] = []
    result = run_probe(source, **MINI, head="knn", on_event=events.append)
    right = "300 of 1000 test images are of classes without training images: top-1 is at most 70.0 %"

    assert [event.text for event in events if isinstance(event, Notice)] == [right]
    assert result.results[0].top1 < min(70, whole.top1)
    assert result.protocol["data"][0]["classes"] == 13


@pytest.mark.parametrize(
    ("head", "chosen"),
    [("knn", {"k": 10}), ("ridge", {"penalty": 0.01}), ("logistic", {"penalty": 3e-3}), ("linear", {"rate": 0.01})],
)
def test_of_one_image_a_class_nothing_is_chosen_and_the_middle_is_taken(
    source: Weights, head: str, chosen: dict[str, float]
) -> None:
    epochs = {"epochs": 1} if head == "linear" else {}
    result = run_probe(source, **MINI, head=head, shots=(1,), **epochs)

    assert [(r.chosen, r.val_top1) for r in result.results] == [(chosen, None)]
    assert result.protocol["chosen"] is None


@pytest.mark.parametrize(("images", "held"), [(4, 2), (10, 5), (199, 99), (200, 100), (1000, 100), (2000, 200)])
def test_few_images_are_held_out_by_the_hundred(images: int, held: int) -> None:
    rows = split_held_out(torch.arange(images), torch.zeros(images, dtype=torch.int64), seed=0)

    assert [len(part) for part in rows] == [images - held, held]


def test_what_is_held_out_leaves_every_class_an_image_to_fit_on() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
    fit, held = split_held_out(torch.arange(10), labels, seed=0)

    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(10))
    assert set(labels[fit].tolist()) == {0, 1, 2, 3}
    assert 3 <= len(held) <= 5


# several at once


def test_layers_and_poolings_are_read_together_as_each_alone(source: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    monkeypatch.setattr(encoder_probing, "extract", lambda *a, **k: (passes.append(k["task"]), extract(*a, **k))[1])
    together = run_probe(source, **{**MINI, "layers": ("conv1", "conv2", "classifier")}, head="knn", pool=("max", "avg"))
    assert len(passes) == 2  # train and test

    assert [(h.layer, h.pool) for h in together.results] == [
        *(("conv1", "max"), ("conv1", "avg"), ("conv2", "max"), ("conv2", "avg"), ("classifier", "none")),
    ]
    for head in together.results:
        assert run_probe(source, **{**MINI, "layers": (head.layer,)}, head="knn", pool=(head.pool,)).results == [head]


def test_a_layer_whose_map_pooling_leaves_as_it_is_is_read_once(source: Weights) -> None:
    side = 8  # of the map of conv2
    result = run_probe(source, **{**MINI, "layers": ("conv1", "conv2")}, head="knn", pool=("max", "avg"), pool_size=side)
    (pooled,) = run_probe(source, **{**MINI, "layers": ("conv2",)}, head="knn", pool=("none",)).results

    assert [(head.layer, head.pool) for head in result.results] == [("conv1", "max"), ("conv1", "avg"), ("conv2", "none")]
    assert result.results[-1] == pooled


def test_several_data_sets_are_each_reported_with_their_counts(source: Weights, tmp_path: Path) -> None:
    other = f"fashion-mnist:{write_idx(tmp_path, train=30, test=20)}"
    names = f"fashion-mini,{other}"
    result = run_probe(source, **{**MINI, "limit_train": 25}, head="knn", dataset={"name": names})
    alone = run_probe(source, **{**MINI, "limit_train": 25}, head="knn", dataset={"name": other})

    assert [head.dataset for head in result.results] == ["fashion-mini", other]
    assert result.results[1:] == alone.results
    counts = [(d["dataset"], d["train_images"], d["test_images"]) for d in result.protocol["data"]]
    assert counts == [("fashion-mini", 25, 1000), (other, 25, 20)]


# fewer labels


def test_a_fraction_is_a_share_of_each_class_and_one_image_at_least() -> None:
    labels = torch.tensor([0] * 100 + [1] * 40 + [2] * 3)
    rows = subset_rows(labels, fraction=0.1, seed=0)

    assert torch.bincount(labels[rows]).tolist() == [10, 4, 1]
    assert rows.tolist() != subset_rows(labels, fraction=0.1, seed=1).tolist()


def test_each_seed_draws_its_own_images_and_the_result_says_how_many(source: Weights) -> None:
    result = run_probe(source, **MINI, head="knn", fraction=0.2, seeds=2)

    assert [(head.seed, head.shots) for head in result.results] == [(0, None), (1, None)]
    assert all(36 <= head.train_images <= 44 for head in result.results)
    assert result.protocol["fraction"] == 0.2


# fine-tuning, and the supervised baseline


@pytest.mark.slow
def test_fine_tuning_trains_a_copy_and_beats_frozen_features(source: Weights) -> None:
    settings = {"layers": ("conv2",), "limit_train": 600, "baseline": False, "augmented": False, "epochs": 12, "rates": (0.03,)}
    before = {name: tensor.clone() for name, tensor in source.tensors.items()}
    tuned, frozen = (run_probe(source, **settings, finetune=finetune).results[0] for finetune in (True, False))

    assert all(torch.equal(tensor, before[name]) for name, tensor in source.tensors.items())
    assert tuned.top1 > frozen.top1 + 2
    assert (tuned.val_top1, tuned.chosen) == (None, {"rate": 0.03})


def test_fine_tuning_chooses_its_rate_on_held_out_images_repeatably(source: Weights) -> None:
    settings = {**MINI, "limit_train": 40, "epochs": 1, "finetune": True, "rates": (0.1, 0.001)}
    first, again = (run_probe(source, **settings) for _ in range(2))

    assert first.results == again.results
    assert first.results[0].chosen["rate"] in (0.1, 0.001)
    assert first.results[0].val_top1 is not None
    assert first.protocol["finetune"] is True
    assert first.protocol["augmentation"] == {"crop": "random", "padding": 4, "flip": True}


def test_fine_tuning_by_a_schedule_chooses_nothing_and_trains_once(source: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(encoder_probing, "train_heads", lambda *a, **k: (calls.append(a[2]), [[(50.0, 60.0)]])[1])
    (head,) = run_probe(source, **MINI, finetune=True, schedule={"epochs": 1, "rate": 0.05}).results

    assert [[spec.peak for spec in specs] for specs in calls] == [[None]]
    assert (head.chosen, head.val_top1) == ({}, None)


def test_fine_tuning_takes_all_layers_but_the_log_variance(source: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_probing, "train_heads", lambda *a, **k: [[(50.0, 60.0)]])
    result = run_probe(source, **{**MINI, "layers": ("all",)}, finetune=True, rates=(0.1,))

    assert [head.layer for head in result.results] == ["conv1", "conv2", "conv3", "conv4", "classifier"]
    with pytest.raises(AvtError, match=r"fine-tuned has no log-variance branch: leave out NAME\.log_var, or --finetune"):
        run_probe(source, **{**MINI, "layers": ("conv2.log_var",)}, finetune=True)


def test_the_supervised_backbone_learns_from_labels_and_is_probed_too(source: Weights) -> None:
    settings = {**MINI, "limit_train": 600, "layers": ("conv2", "classifier"), "head": "knn", "baseline": True}
    result = run_probe(source, **settings, supervised=True, epochs=8, rates=(0.03,))
    tops = {name: [head.top1 for head in getattr(result, name)] for name in ("results", "baseline", "supervised")}

    assert [head.layer for head in result.supervised] == ["conv2", "classifier"]
    assert tops["supervised"][1] > max(tops["results"][1], tops["baseline"][1]) + 2
    assert (result.protocol["supervised"]["epochs"], result.protocol["supervised"]["rates"]) == (8, [0.03])


# augmented copies


def test_copies_are_features_of_augmented_images_taken_in_turn(source: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[Any] = []
    monkeypatch.setattr(encoder_probing, "extract", lambda *a, **k: (keys.append(k.get("epoch_key")), extract(*a, **k))[1])
    settings = {**MINI, "limit_train": 40, "augmented": True, "epochs": 2, "schedule": {"epochs": 2, "rate": 0.01}}
    kept = run_probe(source, **settings, copies=2)
    assert keys == [(0, 0), (0, 1), None]  # the draws of epochs 0 and 1, and test as it is
    keys.clear()
    forwarded = run_probe(source, **settings)

    run_probe(source, **{**settings, "schedule": None}, copies=2)
    assert keys[1:] == [None, (0, 0), (0, 1), None]  # held-out images of train as they are, where a rate is chosen
    assert kept.results == forwarded.results  # two epochs see just the two draws
    assert kept.protocol["copies"] == 2


# the random baseline, and calibration


def with_statistics_of_200(source: Weights, encoder: Encoder) -> Weights:
    """Weights with PyTorch's own update of BatchNorm's statistics, from the 200 training images in one batch."""
    split = build_data(Plugin(name="fashion-mini"), None).train
    update_bn([encoder.normalise(split.images[limited(torch.arange(2000), 200)])], encoder)
    return replace(source, tensors=encoder.state_dict())


@pytest.mark.parametrize("layer", ["conv2", "conv2.log_var"])
def test_the_random_baseline_has_the_statistics_of_the_training_images(source: Weights, layer: str) -> None:
    settings = {**MINI, "layers": (layer,), "head": "knn"}
    result = run_probe(source, **{**settings, "baseline": True})
    random = build_encoder(source.spec, seed=0)
    as_initialised = run_probe(replace(source, tensors=random.state_dict()), **settings)
    expected = run_probe(with_statistics_of_200(source, random), **settings)

    assert [head.top1 for head in result.baseline] == pytest.approx([head.top1 for head in expected.results], abs=0.2)
    assert abs(result.baseline[0].top1 - as_initialised.results[0].top1) > 0.2
    assert result.protocol["baseline"]["backbone"] == "random weights, BatchNorm statistics of 200 training images"
    assert result.protocol["calibrated"] is None


def test_weights_are_calibrated_only_if_asked(source: Weights) -> None:
    stale = {name: tensor + 1 if name.endswith("running_mean") else tensor for name, tensor in source.tensors.items()}
    source = replace(source, tensors=stale)
    as_stored, found = (run_probe(source, **MINI, head="knn", calibrate_bn=asked) for asked in (False, True))
    expected = run_probe(with_statistics_of_200(source, restore_encoder(source)), **MINI, head="knn")

    assert found.results[0].top1 == pytest.approx(expected.results[0].top1, abs=0.2)
    assert abs(found.results[0].top1 - as_stored.results[0].top1) > 0.2
    assert (as_stored.protocol["calibrated"], found.protocol["calibrated"]) == (
        None,
        "BatchNorm statistics of 200 training images",
    )


# a backbone without a run


BY_NAME: dict[str, Any] = {"backbone": {"name": "nin", "width": 0.05}, "layers": ("conv1",), "limit_train": 40}


def test_a_backbone_without_a_run_is_probed_as_it_is_initialised() -> None:
    result = run_probe(None, **BY_NAME, head="knn")

    assert result.run == "nin"
    assert (len(result.results), len(result.baseline)) == (1, 1)
    assert result.protocol["weights"] == "random"
    assert result.protocol["calibrated"] is None


@pytest.mark.parametrize("over", [{"head": "knn", "calibrate_bn": True}, {"finetune": True, "epochs": 1, "rates": (0.01,)}])
def test_random_weights_that_are_measured_as_the_baseline_are_measured_once(over: dict[str, Any]) -> None:
    events: list[Event] = []
    result = run_probe(None, on_event=events.append, **BY_NAME, **over)

    assert (len(result.results), result.baseline) == (1, [])
    assert result.protocol["baseline"] is None
    assert any(isinstance(e, Notice) and "random themselves: no other baseline" in e.text for e in events)


def test_a_run_and_a_backbone_together_are_refused(tiny_run: Path) -> None:
    with pytest.raises(AvtError, match=r"Both a run, .*, and --backbone nin were given: give one of them"):
        run_probe(tiny_run, backbone={"name": "nin"})


# settings that do not go together


def test_a_rate_goes_over_a_recipes_schedule_in_proportion() -> None:
    config = resolve_probe({"lr": 0.5}, recipe="cifar10-mlp2")
    ours = resolve_probe({"lr": 0.5}, recipe=None)

    assert config.schedule is not None
    assert [piece.rate for piece in config.schedule.pieces] == pytest.approx([0.5, 0.05, 0.005])
    assert ours.learning_rates == (0.5,)


@pytest.mark.parametrize(("head", "method"), [("ridge", "Ridge regression"), ("logistic", "Logistic regression")])
def test_a_head_that_would_fill_the_memory_is_refused(
    source: Weights, monkeypatch: pytest.MonkeyPatch, head: str, method: str
) -> None:
    monkeypatch.setattr("avtcli.probing.head.memory_bytes", lambda: 500_000)
    message = f"{method} on 200 images of 160 features and 10 classes would take 0 GB of the 0 GB of memory"
    with pytest.raises(AvtError, match=message):
        run_probe(source, **MINI, head=head)


def test_images_smaller_than_the_crop_are_refused_whatever_the_padding(source: Weights) -> None:
    with pytest.raises(AvtError, match=r"The images are 32x32 px, too small for augment\.crop = 36"):
        run_probe(source, **MINI, augment={"crop": 36, "padding": 4})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": (1,), "fraction": 0.1}, "shots and fraction both set the number"),
        ({"finetune": True, "supervised": True}, "the baseline of finetune is already a supervised one"),
        ({"copies": 2}, "copies are of augmented images"),
        ({"backbone": {"width": 0.5}}, r"backbone: found options \(width\) and no name: give --backbone too"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AvtError, match=message):
        resolve_probe(settings, recipe=None)
