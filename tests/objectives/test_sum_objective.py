"""Sums of objectives, and several transformed views, against the parts' losses added by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avtcli.config.resolution import options_from_texts, resolve
from avtcli.contracts import Objective, Target, TransformFamily
from avtcli.errors import AvtError
from avtcli.events import ignore
from avtcli.models.siamese import SiameseModel
from avtcli.models.weights import open_weights
from avtcli.objectives.objective_building import build_objective
from avtcli.plugin_kit.checking import run_checks
from avtcli.plugin_kit.objective_checks import CHECKS, ObjectiveUnderTest, the_truth_has_a_smaller_loss_than_a_guess
from avtcli.seeding import keyed_generator
from avtcli.training.training_setup import build_training_setup
from avtplugins.transforms.affine import affine
from avtplugins.transforms.rotation import rotation
from tests.support import run_tiny, tiny_config

SIZE, BATCH, DIM = (32, 48), 6, 5


def built(name: str, *options: str, family: TransformFamily | None = None) -> Objective:
    own = options_from_texts(list(options), kinds=["objective"]).get("objective", {})
    return build_objective(name, own, vector_dim=DIM, family=family or affine())


def code(view: int) -> Tensor:
    return torch.randn(BATCH, DIM, generator=keyed_generator("code", view))


def target(view: int, family: TransformFamily) -> Target:
    parameters = family.sample(BATCH, SIZE, keyed_generator("target", view))
    return Target(family.target(parameters, SIZE).float(), parameters, family, SIZE)


def part(objective: Objective, name: str) -> Objective:
    found = objective.get_submodule(f"parts.{name}")
    assert isinstance(found, Objective)
    return found


def test_a_sum_adds_the_weighted_losses_of_its_parts_on_their_own_views() -> None:
    family = affine()
    objective = built("avt+simclr", "objective.simclr.weight=0.1", "objective.avt.weight=2", family=family)
    x, y, z = (code(view) for view in range(3))
    first, second = (target(view, family) for view in range(2))
    avt, simclr = part(objective, "avt")((x, y), (first,)), part(objective, "simclr")((y, z), (first, second))

    loss = objective((x, y, z), (first, second))

    assert objective.views == ("original", "transformed", "transformed")
    torch.testing.assert_close(loss.per_sample, 2 * avt.per_sample + 0.1 * simclr.per_sample)
    expected = {"avt": avt.per_sample, "simclr": simclr.per_sample, "simclr.accuracy": simclr.parts["accuracy"]}
    expected |= {f"avt.{name}": values for name, values in avt.parts.items()}
    assert set(loss.parts) == set(expected)
    for name, values in expected.items():
        assert torch.equal(loss.parts[name], values)


def test_the_prediction_is_that_of_the_first_part_with_a_decoder_from_its_views() -> None:
    objective = built("simclr+rotnet+aet", family=rotation())
    x, y, z = (code(view) for view in range(3))

    assert objective.prediction == "classes"
    assert torch.equal(objective.predict((x, y, z)).mean, part(objective, "rotnet").predict((y,)).mean)
    assert built("simclr+aet").prediction == "target"


def test_a_sum_has_the_noise_the_batch_and_the_log_variances_of_its_parts() -> None:
    objective = built("aet+avt+simclr", "objective.avt.noise_scale=0.5")
    alone = built("avt+gaussian", "objective.gaussian.noise_scale=0.001")
    layer, layers = objective.log_var_layer(), alone.log_var_layer()
    assert layer is not None
    assert layers is not None

    assert (objective.noise_scale, objective.depends_on_batch) == (0.5, True)
    assert (alone.noise_scale, alone.depends_on_batch) == (0.001, False)
    head = part(objective, "avt").get_submodule("decoder.log_var_head")
    assert {id(p) for p in layer.parameters()} == {id(p) for p in head.parameters()}
    assert len(list(layers.parameters())) == 4
    assert built("aet+simclr").log_var_layer() is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "avt+gaussian",
            [],
            r"'avt\+gaussian' share one code, so one noise scale, found objective\.avt\.noise_scale=0\.001, ",
        ),
        (
            "avt+simclr",
            ["objective.weight=2"],
            r"takes its parts' options, found 'objective\.weight'\..*-o objective\.avt\.KEY=",
        ),
        ("avt+simclr", ["objective.simclr.wieght=2"], r"'simclr' has no option 'wieght'\. Did you mean 'weight'\?"),
        ("avt+simclr", ["objective.simclr.weight=0"], "'simclr' does not take .* option 'weight' should be greater than 0"),
        ("avt+simcrl", [], r"No objective is called 'simcrl'\. Did you mean 'simclr'"),
        ("avt+avt", [], "The sum 'avt\\+avt' has 'avt' twice"),
        ("avt", ["objective.weight=2"], "'avt' has no option 'weight'"),
        ("avt", ["objective.views=0"], "option 'views' should be greater than or equal to 1"),
    ],
)
def test_what_is_wrong_with_a_sum_is_said(name: str, options: list[str], message: str) -> None:
    with pytest.raises(AvtError, match=message):
        built(name, *options)


def test_the_weights_of_a_sum_are_written_with_its_options() -> None:
    written = resolve({"objective": {"name": "aet+simclr", "simclr": {"weight": "0.1"}}}, recipe=None).objective.options

    assert written == {
        "aet": {"views": 1, "weight": 1.0},
        "simclr": {"temperature": 0.5, "projection_dim": 128, "weight": 0.1},
    }


@pytest.mark.parametrize("name", ["avt+simclr", "rotnet+aet"])
def test_a_sum_meets_the_contract_of_an_objective(name: str) -> None:
    """All checks but the one that replaces `predict`, which the parts do not ask."""
    family = rotation()

    def make(family: TransformFamily) -> Objective:
        return build_objective(name, {}, vector_dim=24, family=family)

    checks = [check for check in CHECKS if check is not the_truth_has_a_smaller_loss_than_a_guess]
    results = list(run_checks(checks, ObjectiveUnderTest(make, {"rotation": family})))

    assert len(results) == 5
    assert [result.problem for result in results if not result.ok] == []


@pytest.mark.parametrize("name", ["avt", "gaussian", "aet"])
def test_several_views_are_the_mean_over_pairs_with_the_original(name: str) -> None:
    family = affine()
    one, three = built(name, family=family), built(name, "objective.views=3", family=family)
    three.load_state_dict(one.state_dict())
    x, *others = (code(view) for view in range(4))
    targets = [target(view, family) for view in range(3)]
    losses = [one((x, y), (own,)) for y, own in zip(others, targets, strict=True)]

    loss = three((x, *others), tuple(targets))

    assert three.views == ("original", "transformed", "transformed", "transformed")
    torch.testing.assert_close(loss.per_sample, sum(own.per_sample for own in losses) / 3)
    assert set(loss.parts) == set(losses[0].parts)
    for figure, values in loss.parts.items():
        torch.testing.assert_close(values, sum(own.parts[figure] for own in losses) / 3)
    assert torch.equal(three.predict((x, *others)).mean, one.predict((x, others[0])).mean)


@pytest.mark.parametrize("over", [{"name": "simclr+avt"}, {"name": "avt", "views": 3}])
def test_the_model_decodes_a_pair_that_it_encodes_once(over: dict[str, Any]) -> None:
    net: SiameseModel = build_training_setup(tiny_config(objective=over), on_event=ignore).net.eval()
    x, y = torch.rand(2, 4, 1, 28, 28, generator=keyed_generator("pair"))
    decoder = next(module for name, module in net.named_modules() if name.endswith("decoder"))
    with torch.no_grad():
        pair = net.encode([x, y], roles=("original", "transformed"))
        expected = decoder(pair)
        calls: list[int] = []
        net.encoder.backbone.register_forward_hook(lambda *_: calls.append(1))
        mean, log_var = net(x, y)

    assert torch.equal(mean, expected.mean)
    assert log_var is not None
    assert torch.equal(log_var, expected.log_var)


OVER = {
    "objective": {"name": "avt+simclr", "avt": {"views": 2}, "simclr": {"weight": 0.5}},
    "transform": {"name": "projective+photometric"},
}


@pytest.mark.usefixtures("few_held_out_images")
def test_a_sum_is_resumed_to_the_same_bits_and_evaluated(tmp_path: Path, avt: Any) -> None:
    whole = run_tiny(tmp_path / "whole", **OVER)
    run = run_tiny(tmp_path / "resumed", max_steps=4, **OVER)
    run_tiny(run, resume=True, **OVER)
    weights = [load_file(folder / "checkpoints/step-0000000009/model.safetensors") for folder in (whole, run)]
    lines = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (whole, run)]

    assert set(weights[0]) == set(weights[1])
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert all(a["loss"] == pytest.approx(a["avt"] + 0.5 * a["simclr"], rel=1e-5) for a in lines[0])
    assert {"avt.mse", "avt.log_var", "simclr.accuracy"} <= set(lines[0][0])
    assert open_weights(run).spec.noise_scale == 0.001
    figures = avt(f"evaluate {run} --device cpu --count 60 --json").json
    assert figures["mace_px"] > 0
    assert figures["nll"] is not None
