"""Evaluation: its figures against independent computations, the images that it uses, and the files that it writes."""

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import norm
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from torch import Tensor, nn
from torch.distributions import Normal
from torch.optim.swa_utils import update_bn

from avtcli import load_model
from avtcli.config.components import Augment, Plugin
from avtcli.contracts import Backbone, Code, MemorySplit, Split, TransformFamily
from avtcli.data.held_out import limited, partition
from avtcli.data.images import CropSpec
from avtcli.data.resident_images import ResidentImages
from avtcli.errors import AvtError
from avtcli.evaluation import linear_reading
from avtcli.evaluation.calibration_picture import draw_calibration
from avtcli.evaluation.equivariance import (
    BANK,
    LEVELS,
    DecoderFigures,
    ImageClasses,
    baselines_of,
    errors_by_class,
    finite,
    fit_of,
    has_turns,
    measure_decoder,
    temperature_of,
)
from avtcli.evaluation.evaluate import EvaluateResult, evaluate
from avtcli.evaluation.evaluation_setup import EvaluationRequest, EvaluationSetup, build_evaluation_setup, choose_images
from avtcli.evaluation.linear_reading import measure_ridges, pair_features
from avtcli.events import Event, Notice, Progress, ignore
from avtcli.features import cache_storage
from avtcli.features.evaluation_target import EvaluationTarget, load_target
from avtcli.features.transformed_pairs import TransformedPairs, predict, read_pairs, sample_pairs
from avtcli.geometry.bank_family import BankFamily
from avtcli.geometry.cropping import to_float
from avtcli.geometry.family_building import build_family
from avtcli.geometry.homography import product
from avtcli.metrics.reference_predictors import rotations_by_90_deg
from avtcli.models.encoder import Encoder
from avtcli.models.model_building import build_encoder
from avtcli.models.weights import restore_encoder, restore_model
from avtcli.runtime.devices import Context
from avtcli.runtime.execution import prepare_for_inference
from avtcli.seeding import keyed_generator
from avtcli.training.training_setup import build_transform
from avtplugins.transforms.affine import affine, translation
from avtplugins.transforms.photometric import photometric
from avtplugins.transforms.projective import projective
from avtplugins.transforms.rotation import rotation
from tests.support import run_tiny, tiny_config

SIZE = (32, 32)
CPU = torch.device("cpu")


def open_run(run: Path | None, **over: Any) -> EvaluationTarget:
    return load_target(run, context=Context(CPU), **over)


def built(target: EvaluationTarget, transform: dict[str, Any] | None = None, **over: Any) -> EvaluationSetup:
    request = EvaluationRequest(transform=transform or {}, **over)
    return build_evaluation_setup(target, request, choose_images(target.prepared, request.count), context=Context(CPU))


def evaluate_noting(target: EvaluationTarget, **over: Any) -> tuple[EvaluateResult, str]:
    """The result and the texts of the notices."""
    events: list[Event] = []
    result = evaluate_small(target, context=Context(CPU, on_event=events.append), **over)
    return result, "\n".join(event.text for event in events if isinstance(event, Notice))


def evaluate_small(target: EvaluationTarget, *, context: Context | None = None, **over: Any) -> EvaluateResult:
    return evaluate(target, EvaluationRequest(**{"count": 60, **over}), out=None, context=context or Context(CPU))


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: an evaluation writes into the run's folder."""
    return Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("evaluated") / "tiny"))


@pytest.fixture(scope="module")
def exported(tiny_run: Path) -> EvaluationTarget:
    """The tiny run as an exported file: the encoder only."""
    target = open_run(tiny_run)
    return replace(target, source=replace(target.source, run=None, tensors=restore_encoder(target.source).state_dict()))


@pytest.fixture(scope="module")
def result(run: Path) -> EvaluateResult:
    return evaluate_small(open_run(run))


def blobs(count: int) -> ResidentImages:
    """Bright squares on black, near the centre."""
    images = torch.zeros(count, 1, *SIZE, dtype=torch.uint8)
    tops = torch.randint(12, 15, (count, 2), generator=torch.Generator().manual_seed(3))
    for image, (top, left) in zip(images, tops.tolist(), strict=True):
        image[0, top : top + 6, left : left + 6] = 255
    return ResidentImages(MemorySplit(images, None, prefix="x"), torch.arange(count), device=CPU)


class Oracle(nn.Module):
    """A decoder that returns given answers, in order."""

    def __init__(self, *answers: Tensor, log_var: float | None = None) -> None:
        super().__init__()
        self.answers, self.log_var = torch.cat(answers), log_var

    def standardise(self, images: Tensor) -> Tensor:
        return images

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, self.answers = self.answers[: len(x)], self.answers[len(x) :]
        return mean, None if self.log_var is None else torch.full_like(mean, self.log_var)


def pairs_and_versions(family: TransformFamily, count: int = 300) -> tuple[TransformedPairs, TransformedPairs]:
    images = blobs(count)
    parameters = family.sample(2 * BANK, SIZE, keyed_generator("versions"))
    versions = TransformedPairs(images, torch.arange(2).repeat_interleave(BANK), family, parameters, SIZE)
    return sample_pairs(images, family, SIZE, key=("test",)), versions


def targets(*many: TransformedPairs) -> list[Tensor]:
    return [pairs.family.target(pairs.parameters, pairs.size) for pairs in many]


def measured(family: TransformFamily, answers: list[Tensor], *, log_var: float | None = None) -> DecoderFigures:
    net = Oracle(*answers, log_var=log_var)
    return measure_decoder(net, *pairs_and_versions(family), predicts_classes=False, on_event=ignore)


# decoder


def test_a_perfect_decoder_has_no_error_and_retrieves_every_version() -> None:
    family = projective()
    figures = measured(family, targets(*pairs_and_versions(family)), log_var=0.0)

    assert figures.fit.mace_px == pytest.approx(0, abs=1e-9)
    assert figures.fit.mse_normalised == 0
    assert figures.fit.r2 == 1
    assert figures.fit.r2_per_parameter == dict.fromkeys(family.names, 1.0)
    assert (figures.retrieval["mrr"], figures.retrieval["hit1"], figures.retrieval["hit5"]) == (1, 1, 1)
    assert figures.nll == pytest.approx(family.dof / 2 * math.log(2 * math.pi))
    assert set(figures.calibration["pooled"]) == {1.0}


def test_a_constant_decoder_scores_as_the_constant_baseline_and_chance() -> None:
    family = projective(target="coefficients")
    pairs, versions = pairs_and_versions(family)
    figures = measured(family, [torch.zeros_like(target) for target in targets(pairs, versions)])
    constant = baselines_of(pairs)["constant"]

    assert figures.fit.mace_px == pytest.approx(constant["mace_px"], rel=0.005)  # two estimates of the mean
    assert figures.fit.mse_normalised == pytest.approx(constant["mse_normalised"])
    assert figures.fit.r2 == pytest.approx(0, abs=0.02)
    for name, expected in figures.retrieval["chance"].items():  # each version takes one rank of its image's
        assert figures.retrieval[name] == pytest.approx(expected)
    assert (figures.nll, figures.calibration) == (None, None)


def test_chance_retrieval_is_that_of_a_random_decoder() -> None:
    family = projective()
    pairs, versions = pairs_and_versions(family)
    parameters = family.sample(4000, SIZE, keyed_generator("many"))
    many = replace(versions, rows=torch.zeros(4000, dtype=torch.int64), parameters=parameters)
    guesses = family.target(family.sample(4000, SIZE, keyed_generator("guesses")), SIZE)
    net = Oracle(*targets(pairs), guesses)
    retrieval = measure_decoder(net, pairs, many, predicts_classes=False, on_event=ignore).retrieval

    assert (retrieval["bank"], retrieval["images"]) == (50, 80)
    assert retrieval["chance"] == {"mrr": pytest.approx(sum(1 / k for k in range(1, 51)) / 50), "hit1": 0.02, "hit5": 0.1}
    for name, expected in retrieval["chance"].items():
        assert retrieval[name] == pytest.approx(expected, rel=0.2)


def test_figures_agree_with_independent_formulas(run: Path, result: EvaluateResult) -> None:
    target, model, family = open_run(run), load_model(run), projective()
    split = target.prepared.data.test
    x = to_float(split.images[limited(torch.arange(1000), 60)])
    parameters = family.sample(60, SIZE, keyed_generator(0, "held out"))
    with torch.no_grad():
        mean, log_var = model(model.normalise(x), model.normalise(family.apply(x, parameters)))
    mean, log_var, truth = mean.double(), log_var.double(), family.target(parameters, SIZE)
    std = (log_var / 2).exp()
    inside = (truth - mean).abs() <= norm.ppf(0.9) * std
    corners = torch.tensor([[0, 0, 1], [32, 0, 1], [32, 32, 1], [0, 32, 1]]).double()
    mapped = [corners @ matrix.mT for matrix in (family.in_from_out(p, SIZE) for p in (parameters, family.decode(mean, SIZE)))]
    here, there = (points[..., :2] / points[..., 2:] for points in mapped)

    assert result.mace_px == pytest.approx((here - there).norm(dim=-1).mean().item())
    assert result.mse_normalised == pytest.approx((mean - truth).square().mean().item())
    assert result.r2 == pytest.approx(r2_score(truth, mean, multioutput="variance_weighted"))
    r2 = r2_score(truth, mean, multioutput="raw_values").tolist()  # 1 - a quotient near 1: zero up to rounding is possible
    assert list(result.r2_per_parameter.values()) == pytest.approx(r2, abs=1e-6)
    assert result.nll == pytest.approx(-Normal(mean, std).log_prob(truth).sum(1).mean().item())
    assert result.calibration["levels"][15] == 0.8
    assert result.calibration["pooled"][15] == pytest.approx(inside.double().mean().item())
    assert [curve[15] for curve in result.calibration["per_parameter"].values()] == inside.double().mean(0).tolist()


def test_the_decoders_error_is_the_one_that_pretraining_reported(run: Path) -> None:
    """On training images: those that a run of 40 images is the last to draw."""
    target = open_run(run)
    setup, data = built(target, count=50), target.prepared.data
    last = torch.randperm(2000, generator=keyed_generator("limit", 2000))[1000:].sort().values
    pairs = sample_pairs(ResidentImages(data.train, last, device=CPU), setup.family, SIZE, key=(0, "held out"))
    figures = measure_decoder(load_model(run), pairs, setup.versions, predicts_classes=False, on_event=ignore)

    reported = json.loads((run / "result.json").read_text())
    assert figures.fit.mace_px == pytest.approx(reported["mace_px"], rel=1e-6)  # pretraining used channels-last weights
    assert reported["evaluated_on"] == "1000 held-out images"


def test_a_photometric_family_has_no_pixel_error_and_no_rotation_oracle() -> None:
    family = photometric()
    figures = measured(family, targets(*pairs_and_versions(family)))
    constant = baselines_of(pairs_and_versions(family)[0])

    assert (figures.fit.mace_px, figures.fit.r2, figures.retrieval["hit1"]) == (None, 1, 1)
    assert constant == {"constant": {"mace_px": None, "mse_normalised": pytest.approx(1, rel=0.1)}}


def test_a_run_that_predicts_classes_has_an_accuracy_and_a_ridge(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "rotnet", transform={"name": "rotation"}, objective={"name": "rotnet"})
    (run / "evaluate.png").write_bytes(b"of an earlier evaluation")
    result = evaluate_small(open_run(run), count=40)
    setup, model = built(open_run(run), count=40), load_model(run)
    ((x, y),) = read_pairs(setup.held_out, task="x", on_event=ignore)
    with torch.no_grad():
        predicted = model(model.normalise(x), model.normalise(y))[0].argmax(1)

    assert result.accuracy == pytest.approx(100 * (predicted == setup.held_out.parameters[:, 0]).double().mean().item())
    assert (result.mace_px, result.r2, result.nll, result.calibration, result.retrieval) == (None,) * 5
    assert list(result.ridge[0]["r2_per_parameter"]) == ["cos", "sin"]
    assert not (run / "evaluate.png").exists()
    assert result.baselines["rotation_oracle"]["mace_px"] == pytest.approx(0, abs=1e-9)


def test_a_run_without_a_decoder_has_a_ridge_and_a_reason(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "simclr", objective={"name": "simclr"})
    result, notices = evaluate_noting(open_run(run), count=40)

    assert "decoder not evaluated: the run's objective has none" in notices
    assert result.mace_px is None
    assert result.ridge[0]["r2"] is not None
    assert json.loads((run / "evaluate.json").read_text()) == asdict(result)


def right_and_wrong_turns(family: TransformFamily) -> tuple[TransformedPairs, Tensor]:
    """Pairs, and answers 2 px to the right of the truth; a third of them is turned by 90 degrees instead."""
    pairs, _ = pairs_and_versions(family)
    matrix = family.in_from_out(pairs.parameters, SIZE)
    shifted, turned = torch.eye(3, dtype=torch.float64), rotations_by_90_deg(SIZE)[1]
    shifted[0, 2] = 2
    added = torch.where((torch.arange(len(matrix)) % 3 > 0)[:, None, None], shifted, turned)
    answers = product(added, matrix)
    return pairs, family.target(family.distribution.parameters_from_matrix(answers, SIZE), SIZE)


def test_the_corner_error_is_split_by_the_turn_and_the_class() -> None:
    pairs, answers = right_and_wrong_turns(projective())
    labels = torch.arange(300) % 3
    labels[3] = -1
    classes = ImageClasses(labels, ["turned", "a", "b"])
    fit, by_class = fit_of(pairs, answers), errors_by_class(pairs, answers, classes)

    assert fit.right_turns == pytest.approx(2 / 3)
    assert fit.mace_px_right_turn == pytest.approx(2)
    assert fit.mace_px > 10
    assert by_class["a"] == {
        "images": 100,
        "mace_px": pytest.approx(2),
        "right_turns": 1,
        "mace_px_right_turn": pytest.approx(2),
    }
    assert by_class["turned"] == {
        "images": 99,
        "mace_px": by_class["turned"]["mace_px"],
        "right_turns": 0,
        "mace_px_right_turn": None,
    }
    assert by_class["turned"]["mace_px"] > 20
    assert list(by_class) == ["turned", "a", "b"]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (projective(), True),
        (rotation(), True),
        (projective(rotate=False), False),
        (translation(), False),
        (affine(), False),
        (build_family("projective+photometric", {}), True),
    ],
)
def test_only_families_that_turn_by_90_degrees_are_split(family: TransformFamily, expected: bool) -> None:
    pairs, _ = pairs_and_versions(family, count=20)
    fit = fit_of(pairs, pairs.target)

    assert has_turns(family, SIZE) == expected
    assert (fit.right_turns, fit.mace_px_right_turn) == ((1, pytest.approx(0, abs=1e-9)) if expected else (None, None))


def test_a_runs_errors_by_class_are_of_the_images_of_that_class(run: Path, result: EvaluateResult) -> None:
    data = open_run(run).prepared.data
    labels = data.test.labels[limited(torch.arange(1000), 60)]
    counts = {data.classes[label]: int((labels == label).sum()) for label in labels.unique().tolist()}
    total = sum(own["images"] * own["mace_px"] for own in result.by_class.values())

    assert {name: own["images"] for name, own in result.by_class.items()} == counts
    assert total / 60 == pytest.approx(result.mace_px)


def test_a_temperature_mends_variances_that_are_wrong_by_one_factor() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_var = (torch.randn(4000, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    target = mean + 2 * (log_var / 2).exp() * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
    found = temperature_of(mean, log_var, target)
    half = Normal(mean[::2], (log_var[::2] / 2).exp() * 2)
    inside = [(norm.ppf(0.5 + level / 2) / 2, level) for level in LEVELS]

    assert (found["temperature"], found["pairs"]) == (pytest.approx(4, rel=0.05), 2000)
    assert found["after"]["nll"] == pytest.approx(-half.log_prob(target[::2]).sum(1).mean().item(), abs=1e-3)
    assert found["before"]["nll"] > found["after"]["nll"] + 1
    expected = sum(level - (2 * norm.cdf(z) - 1) for z, level in inside) / len(inside)
    assert found["before"]["calibration_error"] == pytest.approx(expected, abs=0.01)
    assert found["after"]["calibration_error"] < 0.02
    assert found["after"]["coverage"] == pytest.approx(LEVELS, abs=0.02)


def test_the_temperature_of_a_perfect_decoder_is_not_applied() -> None:
    found = temperature_of(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4, 2))

    assert (found["temperature"], found["after"]) == (0, None)


def test_values_that_are_not_finite_become_none() -> None:
    assert [finite(value) for value in (float("inf"), float("nan"), torch.tensor(2.0))] == [None, None, 2.0]


# ridge


class Toy(Backbone):
    """Its code is the image, or one map for every image; its vector the centre of mass."""

    def __init__(self, *, constant: bool) -> None:
        super().__init__()
        self.constant = constant
        self.taps, self.code_tap, self.vector_dim = {"code": 1, "vector": 2}, "code", 2
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, code: Code, want: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        z = code(torch.ones_like(x) if self.constant else x)
        where = torch.arange(0.5, 32) / 32
        middle = torch.stack([(z.sum(2) * where).sum((1, 2)), (z.sum(3) * where).sum((1, 2))], 1)
        return middle, {name: middle for name in want}


def toy_encoder(*, constant: bool) -> Encoder:
    return Encoder(Toy(constant=constant), pixel_mean=[0.0], pixel_std=[1.0]).eval()


def shifted_pairs() -> list[TransformedPairs]:
    return [sample_pairs(blobs(count), translation(fill="constant"), SIZE, key=(count,)) for count in (600, 200)]


@pytest.mark.parametrize(("layer", "least"), [("vector", 0.99), ("code", 0.9)])
def test_the_ridge_reads_shifts_from_equivariant_features_only(layer: str, least: float) -> None:
    fit, held_out = shifted_pairs()
    equivariant, constant = (
        measure_ridges(toy_encoder(constant=c), [layer], fit, held_out, name="toy", context=Context(CPU))[layer]
        for c in (False, True)
    )

    assert equivariant.fit.r2 > least
    assert equivariant.fit.mace_px < constant.fit.mace_px / 3
    assert constant.fit.r2 == pytest.approx(0, abs=0.03)
    assert equivariant.width == {"vector": 4, "code": 32}[layer]


def test_the_ridge_agrees_with_least_squares_on_well_posed_data() -> None:
    fit, held_out = shifted_pairs()
    encoder = toy_encoder(constant=False)
    features = [
        pair_features(encoder, ["vector"], pairs, task="x", context=Context(CPU))["vector"] for pairs in (fit, held_out)
    ]
    lines = LinearRegression().fit(features[0], targets(fit)[0])
    figures = measure_ridges(encoder, ["vector"], fit, held_out, name="toy", context=Context(CPU))["vector"]

    assert figures.penalty == min(linear_reading.PENALTIES)
    expected = r2_score(targets(held_out)[0], lines.predict(features[1]), multioutput="variance_weighted")
    assert figures.fit.r2 == pytest.approx(expected, abs=1e-3)


def test_pair_features_are_both_views_maps_pooled_to_four_by_four(exported: EvaluationTarget) -> None:
    setup, encoder = built(exported, count=10), restore_encoder(exported.source)
    features = pair_features(encoder, ["conv2"], setup.held_out, task="x", context=Context(CPU))["conv2"]
    ((x, y),) = read_pairs(setup.held_out, task="x", on_event=ignore)
    with torch.no_grad():
        pooled = [encoder(encoder.normalise(view)).unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5)) for view in (x, y)]

    assert features.dtype == torch.float32
    torch.testing.assert_close(features, torch.cat([maps.flatten(1) for maps in pooled], 1))


def test_the_random_ridge_measures_an_untrained_encoder(exported: EvaluationTarget, result: EvaluateResult) -> None:
    setup = built(exported, count=60)
    encoder = with_statistics_of(
        prepare_for_inference(build_encoder(exported.source.spec, seed=0).eval(), CPU), views_to_fit_on(setup)[0]
    )
    figures = measure_ridges(encoder, ["conv2"], setup.fit, setup.held_out, name="x", context=Context(CPU))["conv2"]
    (ridge,) = result.ridge

    assert ridge["random"]["r2"] == pytest.approx(figures.fit.r2, rel=1e-4)
    assert result.protocol["random"] == "random weights, BatchNorm statistics of 240 training images"
    assert ridge["random"]["r2"] != ridge["r2"]
    assert (ridge["layer"], result.protocol["ridge"]["fit_pairs"]) == ("conv2", 240)
    assert ridge["features"] == 320
    assert ridge["penalty"] in linear_reading.PENALTIES


def test_one_pass_gives_every_layer_the_ridge_that_it_has_alone(
    exported: EvaluationTarget, result: EvaluateResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, read = list[str](), linear_reading.read_pairs
    monkeypatch.setattr(linear_reading, "read_pairs", lambda *a, task, **k: (passes.append(task), read(*a, task=task, **k))[1])
    several = evaluate_small(exported, layers=("all",)).ridge

    assert tuple(ridge["layer"] for ridge in several) == restore_encoder(exported.source).layers
    assert passes == [f"{name}: {pairs} pairs" for name in ("trained", "random") for pairs in ("fitting", "held-out")]
    assert [ridge for ridge in several if ridge["layer"] == "conv2"] == result.ridge


def with_statistics_of(encoder: Encoder, *batches: Tensor) -> Encoder:
    """PyTorch's own update, from batches of images."""
    update_bn([encoder.normalise(images) for images in batches], encoder)
    return encoder.eval()


def views_to_fit_on(setup: EvaluationSetup) -> tuple[Tensor, Tensor]:
    """Both views of the pairs that the ridge is fitted on, in one batch each."""
    (images,) = setup.fit.images.read_batches([torch.arange(len(setup.fit.images))], CropSpec(SIZE))
    return to_float(images), setup.family.apply(to_float(images), setup.fit.parameters)


def test_calibrated_figures_are_those_of_the_statistics_of_each_view(run: Path, result: EvaluateResult) -> None:
    before = (run / "evaluate.json").read_bytes()
    found, notices = evaluate_noting(open_run(run), calibrate_bn=True)
    setup = built(open_run(run), count=60)
    x, y = views_to_fit_on(setup)
    net, of_transformed = load_model(run), with_statistics_of(load_model(run).encoder, y)
    with_statistics_of(net.encoder, x)
    figures = measure_ridges(net.encoder, ["conv2"], setup.fit, setup.held_out, name="x", context=Context(CPU))["conv2"]
    (pair,) = read_pairs(setup.held_out, task="", on_event=ignore)
    codes = [
        encoder.encode(encoder.normalise(view))[0] for encoder, view in zip((net.encoder, of_transformed), pair, strict=True)
    ]
    mean = net.objective.predict(tuple(codes)).mean.detach()

    assert found.ridge[0]["r2"] == pytest.approx(figures.fit.r2, rel=1e-3)
    assert found.mse_normalised == pytest.approx(float((mean - setup.held_out.target).square().mean()), rel=1e-4)
    assert found.ridge[0]["r2"] != result.ridge[0]["r2"]
    assert found.mse_normalised != result.mse_normalised
    assert found.ridge[0]["random"] == result.ridge[0]["random"]
    assert result.protocol["calibrated"] is None
    assert found.protocol["calibrated"] == "BatchNorm statistics of 240 training images"
    assert "its weights, statistics, images or transformations differ" in notices
    assert (run / "evaluate.json").read_bytes() == before


def test_a_decoder_of_shared_statistics_is_calibrated_on_both_views(run: Path) -> None:
    target = open_run(run)
    assert target.source.config is not None
    tensors = {name: tensor for name, tensor in target.source.tensors.items() if not name.startswith("transformed.")}
    spec = target.source.spec.model_copy(update={"bn_statistics": "shared"})
    target = replace(target, source=replace(target.source, spec=spec, tensors=tensors))
    found, net, setup = evaluate_small(target, calibrate_bn=True), restore_model(target.source), built(target, count=60)
    with_statistics_of(net.encoder, *views_to_fit_on(setup))
    mean, _ = predict(net, setup.held_out, on_event=ignore)

    assert net.transformed is None
    assert found.mse_normalised == pytest.approx(float((mean - setup.held_out.target).square().mean()), rel=1e-4)


def test_pair_features_on_disk_give_the_same_figures(
    exported: EvaluationTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_memory = evaluate_small(exported)
    monkeypatch.setattr(cache_storage, "memory_bytes", lambda: 4 * 4 * 60 * 320 - 1)
    monkeypatch.setattr(cache_storage.tempfile, "tempdir", str(tmp_path))
    stores, make = list[Path | None](), linear_reading.allocate
    monkeypatch.setattr(linear_reading, "allocate", lambda shape, store: (stores.append(store), make(shape, store))[1])
    on_disk = evaluate_small(exported)

    assert stores == [tmp_path] * 4  # fitting and held-out pairs of two encoders
    assert asdict(on_disk) == asdict(in_memory)
    assert list(tmp_path.iterdir()) == []  # they are unlinked at once


# images and transformations


def test_figures_are_a_function_of_the_seed(exported: EvaluationTarget) -> None:
    first, second, other = (asdict(evaluate_small(exported, count=20, context=Context(CPU, seed=seed))) for seed in (1, 1, 2))

    assert first == second
    assert first["ridge"][0]["r2"] != other["ridge"][0]["r2"]
    assert first["baselines"] != other["baselines"]


def test_the_ridge_uses_up_to_four_training_images_a_held_out_one(run: Path) -> None:
    prepared = open_run(run).prepared
    few, many = choose_images(prepared, 100), choose_images(prepared, None)

    assert (few.parts.name, len(few.held_out), len(few.fit)) == ("test", 100, 400)
    assert (len(many.held_out), len(many.fit)) == (1000, 2000)


def test_without_a_test_split_held_out_images_are_measured_on_and_others_fitted(exported: EvaluationTarget) -> None:
    data = replace(exported.prepared.data, test=None)
    target = replace(exported, prepared=replace(exported.prepared, data=data))
    images, parts = choose_images(target.prepared, 60), partition(data)
    protocol = evaluate_small(target).protocol
    count = len(parts.held_out)

    assert set(images.held_out.tolist()) < set(parts.held_out.tolist())
    assert set(parts.held_out.tolist()).isdisjoint(images.fit.tolist())
    assert (len(images.held_out), len(images.fit)) == (60, 240)
    assert len(choose_images(target.prepared, None).fit) == 2000 - count  # all, though few are held out
    assert (protocol["split"], protocol["split_images"], protocol["train_images"]) == ("held-out", count, 2000 - count)
    with pytest.raises(AvtError, match=rf"--count 2000 asks for more images than the {count} of the held-out split"):
        choose_images(target.prepared, 2000)


class OneByOne(Split):
    """A split whose images are not in memory."""

    images = None

    def __init__(self, split: MemorySplit) -> None:
        self.split, self.labels = split, split.labels

    def __len__(self) -> int:
        return len(self.split)

    def read(self, i: int) -> Tensor:
        return self.split.read(i)

    def name(self, i: int) -> str:
        return self.split.name(i)


def test_streamed_images_give_the_same_figures(exported: EvaluationTarget) -> None:
    data = exported.prepared.data
    streamed = replace(data, train=OneByOne(data.train), test=OneByOne(data.test))
    target = replace(exported, prepared=replace(exported.prepared, data=streamed))

    assert evaluate_small(target, count=20, context=Context(CPU, workers=0)) == evaluate_small(exported, count=20)


def test_every_version_of_an_image_is_a_new_draw(exported: EvaluationTarget) -> None:
    versions = built(exported, count=120).versions

    assert versions.rows.bincount(minlength=120).sort(descending=True).values[:4].tolist() == [50, 50, 50, 0]
    assert len(versions.parameters.unique(dim=0)) == 150


def test_a_bank_run_is_evaluated_on_fresh_draws_with_its_statistics(tmp_path: Path) -> None:
    transform = {"name": "projective", "target": "coefficients"}
    run = run_tiny(tmp_path / "bank", bank_count=30, epochs=1, transform=transform)
    setup = built(open_run(run), count=50)

    assert not isinstance(setup.family, BankFamily)
    assert len(setup.held_out.parameters.unique(dim=0)) == 50
    rows = build_transform(tiny_config(bank_count=30, transform=transform), SIZE).rows.double()
    torch.testing.assert_close(setup.family.statistics(SIZE), (rows.mean(0), rows.std(0)), rtol=1e-4, atol=1e-5)
    assert setup.no_decoder is None


# without a decoder


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"name": "affine"}, "was trained on projective, not on affine"),
        ({"shift": "0.05"}, "was trained on projective (shift=0.125), not on projective (shift=0.05)"),
    ],
)
def test_a_foreign_transformation_leaves_the_ridge_and_a_reason(run: Path, given: dict[str, Any], why: str) -> None:
    before = hashes(run)
    result, notices = evaluate_noting(open_run(run), transform=given, count=20)

    assert why in notices
    assert f"not saved in {run}" in notices
    assert hashes(run) == before
    assert (result.mace_px, result.r2, result.calibration, result.retrieval) == (None,) * 4
    assert result.transform == given.get("name", "projective")
    assert result.ridge[0]["r2"] is not None
    assert result.baselines["constant"]["mace_px"] > 5


def test_images_of_another_size_leave_the_ridge_and_a_reason(run: Path) -> None:
    target = open_run(run)
    smaller = replace(target, prepared=replace(target.prepared, size=(24, 28), augment=Augment(crop=24)))
    before = hashes(run)
    _, notices = evaluate_noting(smaller, count=20)

    assert "was trained on images of 32x32 px, these are 28x24 px" in notices
    assert "not saved in" in notices
    assert hashes(run) == before


def test_an_exported_file_has_a_ridge_on_the_runs_transformation(exported: EvaluationTarget, result: EvaluateResult) -> None:
    ridge_only, notices = evaluate_noting(exported)

    assert "holds an encoder only" in notices
    assert (ridge_only.mace_px, ridge_only.nll, ridge_only.retrieval) == (None, None, None)
    assert (ridge_only.ridge, ridge_only.baselines) == (result.ridge, result.baselines)


def test_a_missing_backbone_plugin_is_one_message(exported: EvaluationTarget) -> None:
    spec = exported.source.spec.model_copy(update={"backbone": Plugin(name="gone")})
    target = replace(exported, source=replace(exported.source, spec=spec))

    with pytest.raises(AvtError, match=r"No backbone is called 'gone'") as caught:
        evaluate_small(target)
    assert caught.value.exit_code == 2


# files


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_keeps_the_newest_result_and_its_picture(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = hashes(run)
    evaluate_small(open_run(run), count=30)
    first = hashes(run)
    second = evaluate_small(open_run(run), count=20)

    assert set(first) - set(before) == {"evaluate.json", "evaluate.png"}
    assert hashes(run) == {**before, **{name: hashes(run)[name] for name in ("evaluate.json", "evaluate.png")}}
    assert all(hashes(run)[name] != first[name] for name in ("evaluate.json", "evaluate.png"))
    assert json.loads((run / "evaluate.json").read_text()) == asdict(second)
    assert second.calibration["picture"] == str(run / "evaluate.png")


def test_the_picture_is_a_reproducible_png(result: EvaluateResult) -> None:
    picture = draw_calibration(result.calibration)

    assert picture.startswith(b"\x89PNG\r\n")
    assert picture == draw_calibration(result.calibration)
    assert picture != draw_calibration({**result.calibration, "pooled": result.calibration["levels"]})


def test_without_matplotlib_a_notice_names_the_extra(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: EvaluateResult
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    without, notices = evaluate_noting(open_run(run))

    assert "pip install 'avtcli[report]'" in notices
    assert without.calibration == {**result.calibration, "picture": None}
    assert not (run / "evaluate.png").exists()
    assert json.loads((run / "evaluate.json").read_text())["calibration"]["picture"] is None


def test_the_progress_of_every_part_reaches_its_end(run: Path) -> None:
    events: list[Event] = []
    evaluate_small(open_run(run), count=20, context=Context(CPU, on_event=events.append))
    last = {event.task: (event.done, event.total) for event in events if isinstance(event, Progress)}

    assert last == {
        "held-out pairs": (20, 20),
        "retrieval": (50, 50),
        "random BatchNorm statistics": (80, 80),
        **{f"{name}: fitting pairs": (80, 80) for name in ("trained", "random")},
        **{f"{name}: held-out pairs": (20, 20) for name in ("trained", "random")},
    }
