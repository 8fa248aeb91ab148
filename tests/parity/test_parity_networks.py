"""The networks against the numbers that the authors' published code gives."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from avtcli import registry
from avtcli.config.components import Plugin
from avtcli.config.model_spec import ModelSpec
from avtcli.contracts import Target
from avtcli.models.model_building import build_model
from avtcli.models.siamese import SiameseModel
from tests.parity.models import build, golden_of, loss_of, our_name
from tests.parity.tolerances import assert_near, assert_summary
from tests.parity.weights import image_pair, target

BACKBONES = ("nin", "alexnet")
NOISES = ("zeros", "ones")


@pytest.fixture(scope="module", params=BACKBONES)
def network(request: pytest.FixtureRequest) -> tuple[str, SiameseModel]:
    return request.param, build(request.param).eval()


@pytest.fixture(scope="module", params=NOISES)
def evaluated(request: pytest.FixtureRequest, network: tuple[str, SiameseModel]):
    """What a network gives in eval mode with its noise replaced, beside the golden numbers."""
    backbone, model = network
    golden = golden_of(backbone)
    x, y = image_pair(golden["batch"], golden["size"])
    encoder = model.encoder
    noise = torch.full((len(x), *encoder.code_shape(3, (golden["size"],) * 2)), float(request.param == "ones"))
    with torch.no_grad():
        z1, features = encoder.encode(x, noise, (*encoder.layers, encoder.log_var_name))
        z2, _ = encoder.encode(y, noise)
        mean, log_var = model(x, y, [noise, noise])
        loss = loss_of(model, (x, y), noise, target(len(x)))
    ours = {"z1": z1, "z2": z2, "mu": mean, "logvar_raw": log_var / model.objective.decoder.log_var_scale, "loss": loss}
    return golden[f"eval_noise_{request.param}"], ours, features, encoder.backbone.code_tap


def test_the_golden_names_are_exactly_those_of_our_tensors(network):
    backbone, model = network
    golden = golden_of(backbone)["keys"]
    assert {our_name(backbone, key): tuple(shape) for key, shape in golden.items()} == {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }


def test_the_vectors_that_enter_the_decoder_are_the_releases(evaluated):
    golden, ours, *_ = evaluated
    for name in ("z1", "z2"):
        assert_summary("outputs", name, ours[name], golden[name])


def test_mean_and_raw_log_variance_are_the_releases(evaluated):
    golden, ours, *_ = evaluated
    for name in ("mu", "logvar_raw"):
        assert_near("outputs", name, ours[name], golden[name])


def test_the_loss_is_the_releases(evaluated):
    golden, ours, *_ = evaluated
    assert_near("outputs", "loss", ours["loss"], golden["loss"])


def test_every_named_feature_is_the_releases(evaluated):
    golden, _, features, code_tap = evaluated
    # the release reads mean and log-variance of the code as one feature
    joined = {**features, code_tap: torch.cat([features[code_tap], features[f"{code_tap}.log_var"]], 1)}
    for name, summary in golden["features"].items():
        assert_summary("outputs", name, joined[name], summary)


def test_the_golden_features_are_all_of_our_taps(evaluated):
    golden, _, features, code_tap = evaluated
    assert set(features) - {f"{code_tap}.log_var", "classifier"} == set(golden["features"])


def train(model: SiameseModel, batch: int, side: int, steps: int, log_var_rate: float) -> list[float]:
    """Take steps in float64 as the release's optimiser does, without noise; return their losses."""
    x, y = (view.double() for view in image_pair(batch, side))
    values = target(batch).double()
    apart = list(model.objective.log_var_layer().parameters())
    rest = [p for p in model.parameters() if all(p is not q for q in apart)]
    optimizer = torch.optim.SGD(
        [{"params": rest, "lr": 1e-3}, {"params": apart, "lr": log_var_rate}],
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
    )
    noise = torch.zeros(batch, *model.encoder.code_shape(3, (side, side)), dtype=torch.float64)
    losses = []
    for _ in range(steps):
        loss = loss_of(model, (x, y), noise, values)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def trained(network: tuple[str, SiameseModel]):
    backbone, filled = network
    golden = golden_of(backbone)
    model = deepcopy(filled).double().train()
    steps = len(golden["train"]["losses"])
    log_var_rate = 1e-2 if backbone == "nin" else 1e-3
    losses = train(model, golden["train"]["batch"], golden["size"], steps, log_var_rate)
    return backbone, golden["train"], losses, model.state_dict()


def test_the_losses_of_successive_training_steps_are_the_releases(trained):
    _, golden, losses, _ = trained
    for step, (ours, expected) in enumerate(zip(losses, golden["losses"], strict=True)):
        assert_near("training", f"loss of step {step}", ours, expected)


def test_every_tensor_after_training_is_the_releases(trained):
    backbone, golden, _, tensors = trained
    for key, summary in golden["after"].items():
        assert_summary("training", key, tensors[our_name(backbone, key)], summary)


def test_the_golden_tensors_after_training_are_all_of_ours_but_the_counts(trained):
    backbone, golden, _, tensors = trained
    named = {our_name(backbone, key) for key in golden["after"]}
    assert set(tensors) - named == {name for name in tensors if name.endswith("num_batches_tracked")}


def test_the_running_averages_moved_twice_a_step(trained):
    _, golden, _, tensors = trained
    counts = {int(tensor) for name, tensor in tensors.items() if name.endswith("num_batches_tracked")}
    assert counts == {2 * len(golden["losses"])}


def encode_views(model: SiameseModel, x: Tensor, y: Tensor, noise: Tensor, *, together: bool) -> tuple[Tensor, ...]:
    """The vectors of both views, each view by itself, or naively both in one batch."""
    if not together:
        return model.encode([x, y], [noise, noise])
    vectors, _ = model.encoder.encode(torch.cat([x, y]), torch.cat([noise, noise]))
    return vectors.chunk(2)


def loss_of_codes(model: SiameseModel, codes: tuple[Tensor, ...], values: Tensor) -> Tensor:
    family = registry.build("transform", "projective", {"target": "coefficients"})
    return model.loss(codes, [Target(values, values, family, (32, 32))]).per_sample.mean()


def test_both_views_in_one_batch_miss_the_golden_loss():
    golden = golden_of("nin")["train"]
    model = build("nin").double().train()
    x, y = (view.double() for view in image_pair(4, 32))
    noise = torch.zeros(4, 192, 8, 8).double()
    with torch.no_grad():
        loss = loss_of_codes(model, encode_views(model, x, y, noise, together=True), target(4).double())
    with pytest.raises(AssertionError, match="beyond the tolerance"):
        assert_near("training", "loss", loss, golden["losses"][0])


def both_ways(*, training: bool) -> list[dict[str, Tensor]]:
    """Outputs, gradients and running averages of a narrow NIN, each view by itself and in one batch; float64."""
    x, y = (view.double() for view in image_pair(4, 32))
    noise = torch.zeros(4, 48, 8, 8, dtype=torch.float64)
    spec = ModelSpec(
        backbone=Plugin.model_validate({"name": "nin", "width": 0.25}),
        objective=Plugin(name="avt"),
        transform=Plugin.model_validate({"name": "projective", "target": "coefficients"}),
        **{"channels": 3, "size": (32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3},
    )
    out = []
    for together in (False, True):
        model = build_model(spec).double().train(training)
        codes = encode_views(model, x, y, noise, together=together)
        found = model.objective.predict(codes)
        torch.autograd.backward(loss_of_codes(model, codes, target(4).double()))
        gradients = {f"gradient {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
        averages = {f"average {n}": b for n, b in model.named_buffers() if "running" in n}
        out.append({"output mean": found.mean.detach(), "output log_var": found.log_var.detach(), **gradients, **averages})
    return out


def farthest(ways: list[dict[str, Tensor]], kind: str) -> float:
    """The largest difference among the tensors of a kind, as a share of the largest value there."""
    apart, together = (torch.cat([t.flatten() for name, t in way.items() if name.startswith(kind)]) for way in ways)
    return float((apart - together).abs().max() / apart.abs().max())


KINDS = ("output", "gradient", "average")


def test_both_views_in_one_batch_give_other_outputs_gradients_and_running_averages():
    ways = both_ways(training=True)
    for kind in KINDS:
        assert farthest(ways, kind) > 1e-3, kind


def test_both_views_in_one_batch_differ_by_their_batch_statistics_alone():
    ways = both_ways(training=False)
    for kind in KINDS:
        assert farthest(ways, kind) < 1e-9, kind
