"""The kinds of probe beside trained heads on frozen features: neighbours, ridge, fine-tuning, several data sets, no run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from avtcli.config import Plugin
from avtcli.core.heads import LinearHead, pool_features, stacked_logits
from avtcli.errors import AvtError
from avtcli.runs import features as features_module
from avtcli.runs import probe_heads as module
from avtcli.runs.closed_heads import split_held_out
from avtcli.runs.events import Event, Notice
from avtcli.runs.loaders import build_data, limited
from avtcli.runs.loading import Source, encoder_of, open_source
from avtcli.runs.probe import ProbeResult, probe
from avtcli.runs.probe_heads import drawn_rows
from avtcli.settings import resolve_probe

MINI = {"limit_train": 200, "layers": ("conv2",), "baseline": False}


def run_probe(source: Source | Path | None, *, events: list[Event] | None = None, **settings: Any) -> ProbeResult:
    seen = [] if events is None else events
    return probe(source, resolve_probe(settings, recipe=None), out=None, on_event=seen.append)


@pytest.fixture(scope="module")
def source(tiny_run: Path) -> Source:
    """The tiny run as if it were a file: probes leave nothing behind."""
    return replace(open_source(tiny_run), run=None, tensors=encoder_of(open_source(tiny_run)).state_dict())


@pytest.fixture(scope="module")
def pooled(source: Source) -> dict[str, tuple[Tensor, Tensor]]:
    """Features of the 200 training and the 1 000 test images as a probe of conv2 reads them, and the labels."""
    data, encoder = build_data(Plugin(name="fashion-mini"), None), encoder_of(source)
    assert data.test is not None
    out = {}
    for part, split, rows in (("train", data.train, limited(data.train, 200)), ("test", data.test, torch.arange(1000))):
        with torch.no_grad():
            codes = encoder(encoder.normalise(split.images[rows]))
        out[part] = (pool_features(codes, "max", 4).flatten(1), split.labels[rows])
    return out


# nearest neighbours and ridge


@pytest.mark.parametrize("temperature", [0.07, 0.0])
def test_neighbours_vote_as_in_scikit_learn(
    source: Source, pooled: dict[str, tuple[Tensor, Tensor]], temperature: float
) -> None:
    (head,) = run_probe(source, **MINI, head="knn", k=(7,), temperature=temperature).results
    weights = (lambda distances: torch.tensor(1 - distances).div(temperature).exp().numpy()) if temperature else "uniform"
    oracle = KNeighborsClassifier(7, metric="cosine", algorithm="brute", weights=weights)
    oracle.fit(*(t.double().numpy() for t in pooled["train"]))

    assert head.top1 == pytest.approx(100 * oracle.score(*(t.double().numpy() for t in pooled["test"])), abs=0.2)
    assert (head.val_top1, head.chosen, head.top1_best_test_epoch) == (None, {"k": 7}, None)


def test_the_number_of_neighbours_is_the_best_on_held_out_training_images(
    source: Source, pooled: dict[str, tuple[Tensor, Tensor]]
) -> None:
    (head,) = run_probe(source, **MINI, head="knn", k=(1, 5, 100)).results
    features, labels = (t.double().numpy() for t in pooled["train"])
    fit, held = (rows.numpy() for rows in split_held_out(torch.arange(200), 0.1, seed=0))
    scores = {}
    for k in (1, 5, 100):
        oracle = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda d: torch.tensor((1 - d) / 0.07).exp().numpy()
        )
        scores[k] = 100 * oracle.fit(features[fit], labels[fit]).score(features[held], labels[held])

    assert head.chosen == {"k": max(scores, key=lambda k: scores[k])}
    assert head.val_top1 == pytest.approx(max(scores.values()))


def test_ridge_is_that_of_scikit_learn_on_standardised_features(
    source: Source, pooled: dict[str, tuple[Tensor, Tensor]]
) -> None:
    (head,) = run_probe(source, **MINI, head="ridge", penalties=(0.1,)).results
    features, labels = pooled["train"][0].double(), pooled["train"][1]
    mean, std = features.mean(0), features.std(0, correction=0)
    std[std == 0] = 1
    oracle = Ridge(0.1 * 200).fit(((features - mean) / std).numpy(), torch.nn.functional.one_hot(labels).double().numpy())
    predicted = oracle.predict(((pooled["test"][0].double() - mean) / std).numpy()).argmax(1)

    assert head.top1 == pytest.approx(100 * (torch.from_numpy(predicted) == pooled["test"][1]).double().mean().item(), abs=0.2)
    assert head.chosen == {"penalty": 0.1}


def test_more_neighbours_than_images_are_all_of_them(source: Source) -> None:
    (head,) = run_probe(source, **MINI, head="knn", k=(500,), shots=(1,)).results

    assert head.chosen == {"k": 9}  # of ten images, one of which is held out of the choice


# several at once


def test_layers_and_poolings_are_read_in_one_pass_and_give_what_each_gives_alone(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []
    monkeypatch.setattr(module, "extract", lambda *a, **k: (passes.append(k["task"]), features_module.extract(*a, **k))[1])
    together = run_probe(source, **{**MINI, "layers": ("conv1", "conv2", "classifier")}, head="knn", pool=("max", "avg"))
    assert len(passes) == 2  # train and test

    assert [(h.layer, h.pool) for h in together.results] == [
        *(("conv1", "max"), ("conv1", "avg"), ("conv2", "max"), ("conv2", "avg"), ("classifier", "none")),
    ]
    for head in together.results:
        assert run_probe(source, **{**MINI, "layers": (head.layer,)}, head="knn", pool=(head.pool,)).results == [head]


def test_linear_heads_stacked_in_one_product_are_each_their_own() -> None:
    torch.manual_seed(0)
    heads = [LinearHead((3, 2, 2), 5).double() for _ in range(3)]
    for head in heads:
        head.norm = heads[0].norm
    x = torch.randn(8, 3, 2, 2, dtype=torch.float64)
    stacked = stacked_logits(heads, x)

    for logits, head in zip(stacked, heads, strict=True):
        torch.testing.assert_close(logits, head(x))


def test_several_data_sets_are_each_reported_with_their_counts(source: Source) -> None:
    names = "fashion-mini,fashion-mini"
    result = run_probe(source, **MINI, head="knn", dataset={"name": names})

    assert [head.dataset for head in result.results] == ["fashion-mini"] * 2
    assert result.results[0] == result.results[1]
    assert [(d["dataset"], d["train_images"]) for d in result.protocol["data"]] == [("fashion-mini", 200)] * 2


# fewer labels


def test_a_fraction_is_a_share_of_each_class_and_one_image_at_least() -> None:
    labels = torch.tensor([0] * 100 + [1] * 40 + [2] * 3)
    rows = drawn_rows(labels, fraction=0.1, seed=0)

    assert torch.bincount(labels[rows]).tolist() == [10, 4, 1]
    assert rows.tolist() != drawn_rows(labels, fraction=0.1, seed=1).tolist()


def test_each_seed_draws_its_own_images_and_the_result_says_how_many(source: Source) -> None:
    result = run_probe(source, **MINI, head="knn", fraction=0.2, seeds=2)

    assert [(head.seed, head.shots) for head in result.results] == [(0, None), (1, None)]
    assert all(36 <= head.train_images <= 44 for head in result.results)
    assert result.protocol["fraction"] == 0.2


# fine-tuning, and the supervised baseline


def test_fine_tuning_moves_a_copy_of_the_layers_below_and_beats_frozen_random_features(source: Source) -> None:
    settings = {"layers": ("conv2",), "limit_train": 600, "baseline": False, "augmented": False, "epochs": 12, "rates": (0.03,)}
    before = {name: tensor.clone() for name, tensor in source.tensors.items()}
    tuned, frozen = (run_probe(source, **settings, finetune=finetune).results[0] for finetune in (True, False))

    assert all(torch.equal(tensor, before[name]) for name, tensor in source.tensors.items())
    assert tuned.top1 > frozen.top1 + 2
    assert (tuned.val_top1, tuned.chosen) == (None, {"rate": 0.03})


def test_fine_tuning_chooses_its_rate_on_held_out_images_and_is_the_same_every_time(source: Source) -> None:
    settings = {**MINI, "limit_train": 40, "epochs": 1, "finetune": True, "rates": (0.1, 0.001)}
    first, again = (run_probe(source, **settings) for _ in range(2))

    assert first.results == again.results
    assert first.results[0].chosen["rate"] in (0.1, 0.001)
    assert first.results[0].val_top1 is not None
    assert first.protocol["features"].startswith("the backbone trained with the head")
    assert "flip" in first.protocol["augmentation"]


def test_the_supervised_baseline_is_a_random_backbone_fine_tuned(source: Source) -> None:
    settings = {**MINI, "limit_train": 40, "epochs": 1}
    beside = run_probe(source, **settings, supervised=True)
    tuned = run_probe(source, **{**settings, "baseline": True}, finetune=True)

    assert beside.supervised == tuned.baseline
    assert beside.results != beside.supervised
    assert "backbone from random weights trained with the same labels" in beside.protocol["supervised"]


# augmented copies


def test_copies_are_features_of_drawn_images_taken_in_turn(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(module, "extract", lambda *a, **k: (drawn.append(k["drawn"]), features_module.extract(*a, **k))[1])
    settings = {**MINI, "limit_train": 40, "augmented": True, "epochs": 2, "schedule": {"epochs": 2, "rate": 0.01}}
    kept = run_probe(source, **settings, copies=2)
    forwarded = run_probe(source, **settings)

    assert drawn[:4] == [None, None, (0, 0), (0, 1)]  # train and test as they are, and the draws of epochs 0 and 1
    assert kept.results == forwarded.results  # two epochs see just the two draws
    assert kept.protocol["features"].endswith("those of 2 draws of each image kept and taken in turn")


# a backbone without a run


def test_a_backbone_without_a_run_is_probed_and_is_its_own_random_baseline() -> None:
    events: list[Event] = []
    result = run_probe(
        None, events=events, backbone={"name": "nin", "width": 0.05}, layers=("conv1",), limit_train=40, head="knn"
    )

    assert result.run == "nin"
    assert (len(result.results), result.baseline) == (1, [])
    assert result.protocol["weights"] == "random"
    assert any(isinstance(e, Notice) and "random themselves: no other baseline" in e.text for e in events)


def test_a_run_and_a_backbone_together_are_refused(tiny_run: Path) -> None:
    with pytest.raises(AvtError, match=r"Both a run, .*, and --backbone nin were given: give one of them"):
        run_probe(tiny_run, backbone={"name": "nin"})


# settings that do not go together


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": (1,), "fraction": 0.1}, "shots and fraction both say how many images"),
        ({"head": "knn", "augmented": True}, "knn reads features once: it takes no augmented images"),
        ({"head": "ridge", "finetune": True}, "ridge reads features once"),
        ({"finetune": True, "supervised": True}, "the baseline of finetune is the supervised one already"),
        ({"copies": 2}, "copies are of augmented images"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AvtError, match=message):
        resolve_probe(settings, recipe=None)
