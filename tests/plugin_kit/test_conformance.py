"""The conformance checks find errors: each mutant fails a check, whose message says why."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avtcli.contracts import ImageData, Loss, MemorySplit, Objective
from avtcli.errors import AvtError
from avtcli.geometry.geometric_family import GeometricFamily
from avtcli.plugin_kit import backbone_checks as backbone
from avtcli.plugin_kit import dataset_checks as dataset
from avtcli.plugin_kit import objective_checks as objective
from avtcli.plugin_kit import transform_checks as transform
from avtcli.plugin_kit.backbone_checks import BackboneSubject
from avtcli.plugin_kit.checking import Check, run_check, run_checks
from avtcli.plugin_kit.dataset_checks import DatasetSubject
from avtcli.plugin_kit.objective_checks import ObjectiveSubject
from avtplugins.backbones.nin import NIN
from avtplugins.objectives.avt import AVT
from avtplugins.objectives.rotnet import rotnet
from avtplugins.transforms.photometric import photometric
from avtplugins.transforms.projective import projective
from avtplugins.transforms.rotation import rotation
from avtplugins.transforms.translation import translation

torch.set_num_threads(1)


def problems(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.problem for check in checks if not check.ok}


def assert_broken(checks: list[Check], check: Callable[..., str], problem: str) -> None:
    found = problems(checks)
    name = check.__name__.replace("_", " ")
    assert name in found
    assert re.search(problem, found[name]), found[name]


def test_an_exception_in_a_check_fails_it_with_its_type() -> None:
    def a_check(subject: None) -> str:
        raise ZeroDivisionError("half of nothing")

    assert run_check(a_check, None) == Check("a check", "ZeroDivisionError: half of nothing")


def test_a_check_has_its_own_random_state() -> None:
    def draws(subject: list[float]) -> str:
        subject.append(torch.rand(()).item())
        return ""

    before, drawn = torch.get_rng_state(), list[float]()
    assert run_check(draws, drawn).ok
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    run_check(draws, drawn)
    assert drawn[0] == drawn[1]


# backbones


def trial(kind: type[NIN], **attributes: Any) -> list[Check]:
    """Try a NIN of another kind, or with other attributes."""

    def make(seed: int, channels: int) -> NIN:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = kind(channels, 0.05)
        for name, value in attributes.items():
            setattr(network, name, value)
        return network

    return list(run_checks(backbone.CHECKS, BackboneSubject(make, make(0, 3), (32, 32))))


class Unasked(NIN):
    def forward(self, x, code, want=()):
        return super().forward(x, lambda mean: mean, want)


class Twice(NIN):
    def forward(self, x, code, want=()):
        return super().forward(x, lambda mean: code(code(mean)), want)


class OtherMap(NIN):
    def forward(self, x, code, want=()):
        return super().forward(x, lambda mean: code(mean.flatten(2)).view_as(mean), want)


class Deaf(NIN):
    def forward(self, x, code, want=()):
        return super().forward(x, lambda mean: (code(mean), mean)[1], want)


class Flat(NIN):
    def forward(self, x, code, want=()):
        vector, taps = super().forward(x, code, want)
        return vector[:, :-1], taps


class Generous(NIN):
    def forward(self, x, code, want=()):
        return super().forward(x, code, ["conv1"])


class WrongTap(NIN):
    def forward(self, x, code, want=()):
        vector, taps = super().forward(x, code, want)
        return vector, {name: tap[:, :-1] for name, tap in taps.items()}


class Unseeded(NIN):
    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__(in_channels, width)
        generator = torch.Generator()
        generator.seed()
        nn.init.normal_(self.conv4[0][0].weight, generator=generator)


class Renamed(NIN):
    count = 0

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__(in_channels, width)
        Renamed.count += 1
        self.register_buffer(f"buffer{Renamed.count}", torch.zeros(1))


class Hidden(NIN):
    """Its weights are not its whole state."""

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__(in_channels, width)
        self.secret = torch.rand(self.vector_dim)

    def forward(self, x, code, want=()):
        vector, taps = super().forward(x, code, want)
        return vector + self.secret, taps


class Restless(NIN):
    def forward(self, x, code, want=()):
        vector, taps = super().forward(x, code, want)
        return nn.functional.dropout(vector + 1, 0.5, training=True), taps


class Crowd(NIN):
    def forward(self, x, code, want=()):
        vector, taps = super().forward(x, code, want)
        return vector - vector.sum(0) - 1, taps


class Idle(NIN):
    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__(in_channels, width)
        self.idle = nn.Linear(3, 3)


class Explosive(NIN):
    def forward(self, x, code, want=()):
        vector, taps = super().forward(x, code, want)
        return (vector - vector.detach()).abs().sqrt() + vector.detach(), taps


class Colour(NIN):
    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__(3, width)


class Refuses(NIN):
    def __init__(self, in_channels: int, width: float) -> None:
        if in_channels != 3:
            raise AvtError("images of three channels only")
        super().__init__(in_channels, width)


def test_a_backbone_that_meets_every_requirement_passes() -> None:
    assert problems(trial(NIN)) == {}
    assert trial(NIN)[-1].figures == "taken"
    assert trial(Refuses)[-1] == Check("grey images are taken or refused with a message", figures="refused")


@pytest.mark.parametrize(
    ("kind", "attributes", "check", "problem"),
    [
        (NIN, {"taps": {"conv2": "10"}}, backbone.CHECKS[0], "taps needs names with their channels, found .'conv2': '10'"),
        (NIN, {"code_tap": "conv9"}, backbone.CHECKS[0], "code_tap is 'conv9', expected one of the taps conv1, conv2"),
        (NIN, {"vector_dim": 0}, backbone.CHECKS[0], "vector_dim is 0, expected the length of the vector"),
        (
            Unasked,
            {},
            backbone.the_code_is_called_once_with_the_map_of_its_tap,
            "forward called code 0 times, expected once",
        ),
        (Twice, {}, backbone.the_code_is_called_once_with_the_map_of_its_tap, "forward called code 2 times, expected once"),
        (
            OtherMap,
            {},
            backbone.the_code_is_called_once_with_the_map_of_its_tap,
            r"shape \(3, 10, 64\), expected \(3, 10, 'H'",
        ),
        (Deaf, {}, backbone.the_layers_after_the_code_use_what_it_returns, "the vector is the same whatever code returns"),
        (Flat, {}, backbone.the_vector_and_the_wanted_taps_have_the_stated_shapes, r"shape \(3, 9\), expected \(3, 10\)"),
        (Generous, {}, backbone.the_vector_and_the_wanted_taps_have_the_stated_shapes, "conv4, classifier, it gave conv1"),
        (
            WrongTap,
            {},
            backbone.the_vector_and_the_wanted_taps_have_the_stated_shapes,
            r"the tap conv1 has shape \(3, 4, 16, 16\)",
        ),
        (Unseeded, {}, backbone.one_seed_makes_one_network, r"1 of \d+ weights differ, the first is conv4\.0\.0\.weight"),
        (Renamed, {}, backbone.one_seed_makes_one_network, "built twice, the weights have other names"),
        (Hidden, {}, backbone.its_state_dict_is_its_complete_state, "register its other tensors as buffers"),
        (Restless, {}, backbone.in_eval_mode_a_vector_depends_on_its_image_alone, "the same images gave two vectors"),
        (Crowd, {}, backbone.in_eval_mode_a_vector_depends_on_its_image_alone, "depends on the rest of its batch"),
        (
            Idle,
            {},
            backbone.every_weight_gets_a_finite_gradient,
            r"2 weights have no part in the vector, the first is idle\.weight",
        ),
        (Explosive, {}, backbone.every_weight_gets_a_finite_gradient, "weights get NaN or infinity, the first is conv1"),
        (Colour, {}, backbone.grey_images_are_taken_or_refused_with_a_message, "RuntimeError"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_backbone_that_fails_a_requirement_is_caught(
    kind: type[NIN], attributes: dict[str, Any], check: Callable[..., str], problem: str
) -> None:
    assert_broken(trial(kind, **attributes), check, problem)


class AlwaysConv1(NIN):
    """Hands out a tap that nobody asked for, beside those asked for."""

    def forward(self, x, code, want=()):
        return super().forward(x, code, [*want, "conv1"])


def test_a_backbone_that_returns_unrequested_taps_is_caught() -> None:
    check = backbone.the_vector_and_the_wanted_taps_have_the_stated_shapes
    assert_broken(trial(AlwaysConv1), check, "asked for no tap, it gave conv1")


# transformations


def mutant(**methods: Any) -> GeometricFamily:
    """The projective family with other methods or attributes; a method gets the true one's result beside its arguments."""
    family = projective()
    for name, value in methods.items():
        if callable(value):
            true = getattr(family, name)
            setattr(family, name, lambda *args, true=true, value=value: value(true(*args), *args))
        else:
            setattr(family, name, value)
    return family


@pytest.mark.parametrize("family", [projective(), rotation(), photometric(), translation(target="corners")])
def test_a_family_that_meets_every_requirement_passes(family) -> None:
    assert problems(list(run_checks(transform.CHECKS, family))) == {}


def beyond(kept: Tensor, *args: Any) -> Tensor:
    return kept + 0.5


@pytest.mark.parametrize(
    ("methods", "check", "problem"),
    [
        ({"kind": "magic"}, transform.the_values_of_a_target_have_names_and_units, "kind is 'magic'"),
        ({"names": ("a",) * 8}, transform.the_values_of_a_target_have_names_and_units, "names needs one for each value"),
        ({"units": ("px",)}, transform.the_values_of_a_target_have_names_and_units, "8 names have 1 units, expected one each"),
        (
            {"sample": lambda p, *a: p + torch.rand(()).double()},
            transform.one_seed_gives_one_sample,
            "sample used torch's own generator",
        ),
        (
            {"sample": lambda p, *a: p.float()},
            transform.one_seed_gives_one_sample,
            r"gave \(64, 8\) float32, expected \(64, k\) float64",
        ),
        ({"sample": lambda p, *a: p.to("meta")}, transform.one_seed_gives_one_sample, "NotImplementedError|on meta"),
        (
            {"statistics": lambda s, size: (s[0], s[1] * 2)},
            transform.targets_have_the_stated_statistics,
            r"a of the target has mean .* and deviation 0\.5\d*, expected about 0 and 1: correct statistics",
        ),
        (
            {"statistics": lambda s, size: (s[0].float(), s[1])},
            transform.targets_have_the_stated_statistics,
            r"the mean is \(8,\) float32, expected \(8,\) float64",
        ),
        (
            {"target": lambda t, *a: t[:, :-1]},
            transform.targets_have_the_stated_statistics,
            r"target gave \(20000, 7\), expected \(20000, 8\)",
        ),
        ({"decode": lambda p, *a: p * 1.001}, transform.decoding_is_the_inverse, r"target\(decode\(target\)\) is off by"),
        ({"decode": lambda p, *a: p[:, :-1]}, transform.decoding_is_the_inverse, r"decode gave \(64, 7\), expected \(64, 8\)"),
        (
            {"decode": lambda p, *a: p + (p - p.detach()).abs().sqrt()},
            transform.decoding_has_finite_gradients,
            "none, NaN or infinite",
        ),
        ({"apply": lambda m, *a: m[..., 1:]}, transform.images_keep_their_shape_and_range, r"apply made \(8, 1, 32, 31\)"),
        ({"apply": beyond}, transform.images_keep_their_shape_and_range, "values from .* to .*, expected 0 to 1"),
        (
            {"apply": lambda m, x, p: x.mul_(0.5)},
            transform.images_keep_their_shape_and_range,
            "changed its input images",
        ),
        ({"apply": lambda m, *a: m * torch.rand(())}, transform.images_keep_their_shape_and_range, "two results for the same"),
        ({"apply": lambda m, *a: m * m.mean()}, transform.images_keep_their_shape_and_range, "depends on its batch"),
        (
            {"in_from_out": lambda m, *a: torch.linalg.inv(m)},
            transform.its_matrices_transform_the_images,
            "apply and in_from_out transform images differently, by up to .*: in_from_out maps an output",
        ),
        ({"in_from_out": lambda m, *a: m[:, :2]}, transform.its_matrices_transform_the_images, r"gave \(8, 2, 3\)"),
        (
            {"n_classes": 4},
            transform.its_classes_are_below_n_classes,
            "NotImplementedError: ProjectiveDistribution has no classes",
        ),
    ],
)
def test_a_family_that_fails_a_requirement_is_caught(methods, check, problem: str) -> None:
    assert_broken([run_check(check, mutant(**methods))], check, problem)


def test_a_sample_that_ignores_its_generator_is_caught() -> None:
    own = torch.Generator().manual_seed(0)
    family = mutant(sample=lambda p, *a: p + torch.rand((), generator=own).double())

    check = transform.one_seed_gives_one_sample

    assert_broken([run_check(check, family)], check, "gave two samples")


def test_decoding_to_another_warp_of_the_same_target_is_caught() -> None:
    family = rotation()
    family.decode = lambda target, size: torch.zeros(len(target), 1, dtype=target.dtype)
    family.target = lambda parameters, size: torch.zeros(len(parameters), 2, dtype=parameters.dtype)

    assert_broken([run_check(transform.decoding_is_the_inverse, family)], transform.decoding_is_the_inverse, "another warp")


@pytest.mark.parametrize(
    ("change", "problem"),
    [(lambda c: c + 1, "run from 1 to 4, expected 0 to 3"), (lambda c: c.double(), r"classes gave \(64,\) float64")],
)
def test_classes_out_of_range_or_of_another_type_are_caught(change, problem: str) -> None:
    family = rotation()
    true = family.classes
    family.classes = lambda parameters: change(true(parameters))
    check = transform.its_classes_are_below_n_classes

    assert_broken([run_check(check, family)], check, problem)


# data sets


def images(**over: Any) -> ImageData:
    pixels = torch.randint(0, 256, (6, 1, 8, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = ImageData(
        train=MemorySplit(pixels, torch.tensor([0, 1, 2, 0, 1, 2]), prefix="train"),
        test=None,
        channels=1,
        size=(8, 10),
        mean=(0.5,),
        std=(0.25,),
        classes=("a", "b", "c"),
        fingerprint="f",
    )
    return replace(made, **over)


def split(**over: Any) -> MemorySplit:
    part = images().train
    assert isinstance(part, MemorySplit)
    for name, value in over.items():
        setattr(part, name, value)
    return part


def noise(i: int) -> Tensor:
    return torch.randint(0, 256, (1, 8, 10), dtype=torch.uint8)


def test_a_data_set_that_meets_every_requirement_passes() -> None:
    for data in (images(), images(train=split(labels=None), classes=None), images(test=split())):
        assert problems(list(run_checks(dataset.CHECKS, DatasetSubject(data, lambda data=data: data)))) == {}


@pytest.mark.parametrize(
    ("over", "check", "problem"),
    [
        (
            {"test": split(images=torch.zeros(0, 1, 8, 10))},
            dataset.its_splits_have_images,
            "test is empty; a missing split is None",
        ),
        (
            {"channels": 3},
            dataset.images_are_uint8_of_the_stated_channels_and_size,
            r"train train/0 is \(1, 8, 10\) uint8, expected \(3, H, W\) uint8",
        ),
        ({"size": (10, 8)}, dataset.images_are_uint8_of_the_stated_channels_and_size, r"is \(8, 10\) px, the data set states"),
        ({"train": split(read=noise)}, dataset.images_are_uint8_of_the_stated_channels_and_size, "train/0 was read twice and"),
        (
            {"train": split(read=lambda i: torch.zeros(1, 8, 10, dtype=torch.uint8))},
            dataset.images_are_uint8_of_the_stated_channels_and_size,
            r"train/0 differs between read\(0\) and images\[0\]",
        ),
        (
            {"train": split(labels=torch.zeros(5).long())},
            dataset.labels_are_int64_and_in_range,
            r"train are \(5,\) int64, expected \(6,\) int64",
        ),
        (
            {"train": split(labels=torch.arange(6) - 1)},
            dataset.labels_are_int64_and_in_range,
            "begin at -1, expected 0 or more",
        ),
        ({"classes": ("a", "b")}, dataset.labels_are_int64_and_in_range, "reach 2 with 2 class names"),
        ({"train": split(name=lambda i: "same")}, dataset.image_names_are_unique, "6 images of train have 1 names"),
        ({"mean": (0.5,) * 3}, dataset.mean_and_deviation_are_stated_for_each_channel, "mean has 3 values for 1 channels"),
        (
            {"mean": (125.0,)},
            dataset.mean_and_deviation_are_stated_for_each_channel,
            r"mean is \(125\.0,\), expected values in",
        ),
        (
            {"std": (0.0,)},
            dataset.mean_and_deviation_are_stated_for_each_channel,
            r"std is \(0\.0,\), expected values above 0",
        ),
        ({"fingerprint": ""}, dataset.it_is_the_same_when_opened_again, "the fingerprints are '' and ''"),
    ],
)
def test_a_data_set_that_fails_a_requirement_is_caught(over, check, problem: str) -> None:
    data = images(**over)

    assert_broken([run_check(check, DatasetSubject(data, lambda: data))], check, problem)


@pytest.mark.parametrize(
    ("again", "problem"),
    [
        (images(fingerprint="g"), "the fingerprints are 'f' and 'g'"),
        (images(train=split(images=torch.zeros(5, 1, 8, 10))), "train has 6 and 5 images"),
        (images(train=split(labels=None)), "the labels of train differ"),
        (images(train=split(labels=torch.zeros(6).long())), "the labels of train differ"),
        (images(train=split(prefix="other")), "image 0 of train is train/0 and other/0"),
        (images(train=split(images=torch.zeros(6, 1, 8, 10))), "train train/0 differs"),
    ],
)
def test_a_data_set_that_is_another_when_opened_again_is_caught(again: ImageData, problem: str) -> None:
    check = dataset.it_is_the_same_when_opened_again

    assert_broken([run_check(check, DatasetSubject(images(), lambda: again))], check, problem)


# objectives


class Mutant(AVT):
    """AVT's objective, with hooks."""


def of(loss: Callable[..., Loss] | None = None, **over: Any) -> ObjectiveSubject:
    """AVT's objective with other attributes; `loss` gets the true loss beside its arguments."""
    made = Mutant(noise_scale=0.001, log_var_scale=0.001, variance_floor=1e-4)
    true = made.loss
    if loss is not None:
        over["loss"] = lambda mean, log_var, target: loss(true(mean, torch.zeros_like(mean), target), mean, log_var, target)
    for name, value in over.items():
        object.__setattr__(made, name, value)
    return ObjectiveSubject(made, {"projective": projective()})


def test_an_objective_that_meets_every_requirement_passes() -> None:
    classified: Objective = rotnet()
    for subject in (of(), ObjectiveSubject(classified, {"rotation": rotation()})):
        assert problems(list(run_checks(objective.CHECKS, subject))) == {}


@pytest.mark.parametrize(
    ("over", "check", "problem"),
    [
        (
            {"noise_scale": -1.0},
            objective.what_it_asks_of_the_model_is_stated,
            r"noise_scale is -1\.0, expected a number of 0 or",
        ),
        ({"has_log_var": None}, objective.what_it_asks_of_the_model_is_stated, "has_log_var is None, expected True or False"),
        (
            {"log_var_scale": 0.0},
            objective.what_it_asks_of_the_model_is_stated,
            r"log_var_scale is 0\.0, expected a number other",
        ),
        ({"views": "one"}, objective.what_it_asks_of_the_model_is_stated, "views is 'one', expected both or transformed"),
        (
            {"outputs": lambda family: 3},
            objective.it_predicts_the_target_or_the_classes,
            r"outputs\(projective\) is 3, expected 8",
        ),
        (
            {"loss": lambda loss, *a: Loss(loss.per_sample.mean())},
            objective.every_sample_has_one_finite_loss_of_its_own,
            r"the loss with projective is \(\) float32, expected \(16,\), a finite number a sample",
        ),
        (
            {"loss": lambda loss, *a: Loss(loss.per_sample, {"odd": loss.per_sample / 0})},
            objective.every_sample_has_one_finite_loss_of_its_own,
            r"odd with projective is \(16,\) float32 with NaN or infinity, expected \(16,\)",
        ),
        (
            {"loss": lambda loss, *a: Loss(loss.per_sample + torch.rand(()))},
            objective.every_sample_has_one_finite_loss_of_its_own,
            "the same prediction gave two losses",
        ),
        (
            {"loss": lambda loss, *a: Loss(loss.per_sample - loss.per_sample.mean())},
            objective.every_sample_has_one_finite_loss_of_its_own,
            "a sample's loss depends on the rest of its batch",
        ),
        (
            {
                "has_log_var": False,
                "loss": lambda loss, mean, log_var, target: Loss((mean - target.values).square().sum(1).sqrt()),
            },
            objective.gradients_are_finite_at_a_guess_and_at_the_truth,
            "at the truth with projective, the gradient of the mean is missing, NaN or infinite",
        ),
        (
            {"loss": lambda loss, mean, log_var, target: Loss((mean - target.values).square().sum(1))},
            objective.gradients_are_finite_at_a_guess_and_at_the_truth,
            "at a guess with projective, the gradient of the log-variance is missing",
        ),
        (
            {"loss": lambda loss, *a: Loss(-loss.per_sample)},
            objective.the_truth_has_a_smaller_loss_than_a_guess,
            "with projective, the truth has the loss .* and a guess",
        ),
    ],
)
def test_an_objective_that_fails_a_requirement_is_caught(over, check, problem: str) -> None:
    assert_broken([run_check(check, of(**over))], check, problem)
