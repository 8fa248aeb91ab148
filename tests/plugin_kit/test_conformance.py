"""The conformance checks find errors: each mutant fails a check, whose message says why."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from avtcli.contracts import ImageData, Loss, MemorySplit, Objective, TransformFamily
from avtcli.errors import AvtError
from avtcli.geometry.geometric_family import GeometricFamily
from avtcli.models.decoder import Decoder
from avtcli.plugin_kit import backbone_checks as backbone
from avtcli.plugin_kit import dataset_checks as dataset
from avtcli.plugin_kit import objective_checks as objective
from avtcli.plugin_kit import transform_checks as transform
from avtcli.plugin_kit.backbone_checks import BackboneSubject
from avtcli.plugin_kit.checking import Check, run_check, run_checks
from avtcli.plugin_kit.dataset_checks import DatasetSubject
from avtcli.plugin_kit.objective_checks import ObjectiveUnderTest
from avtplugins.backbones.nin import NIN
from avtplugins.objectives.aet import aet
from avtplugins.objectives.avt import avt
from avtplugins.objectives.gaussian import gaussian
from avtplugins.objectives.rotnet import rotnet
from avtplugins.objectives.simclr import simclr
from avtplugins.transforms.affine import translation
from avtplugins.transforms.photometric import photometric
from avtplugins.transforms.projective import projective
from avtplugins.transforms.rotation import rotation

torch.set_num_threads(1)


def problems(checks: Iterable[Check]) -> dict[str, str]:
    return {check.name: check.problem for check in checks if not check.ok}


def assert_found(problem: str, checks: Iterable[Check]) -> None:
    """One of the checks fails with a problem, given as a regular expression."""
    found = problems(checks)
    assert any(re.search(problem, text) for text in found.values()), found


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


def wired(
    code: Any = lambda code, mean: code(mean), result: Any = lambda *outputs: outputs, want: Any = lambda want: want
) -> type[NIN]:
    """A NIN whose forward calls the code, returns its outputs, or reads the wanted taps in another way."""

    class Mutant(NIN):
        def forward(self, x, given, wanted=()):
            return result(*super().forward(x, lambda mean: code(given, mean), want(wanted)))

    return Mutant


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


class Idle(NIN):
    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__(in_channels, width)
        self.idle = nn.Linear(3, 3)


class Colour(NIN):
    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__(3, width)


class Refuses(NIN):
    def __init__(self, in_channels: int, width: float) -> None:
        if in_channels != 3:
            raise AvtError("images of three channels only")
        super().__init__(in_channels, width)


def explosive(x: Tensor) -> Tensor:
    """The same values, with an infinite gradient."""
    return (x - x.detach()).abs().sqrt() + x.detach()


def test_a_backbone_that_meets_every_requirement_passes() -> None:
    assert problems(trial(NIN)) == {}
    assert trial(NIN)[-1].figures == "taken"
    assert trial(Refuses)[-1] == Check("grey images are taken or refused with a message", figures="refused")


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"taps": {"conv2": "10"}}, "taps needs names with their channels, found .'conv2': '10'"),
        ({"code_tap": "conv9"}, "code_tap is 'conv9', expected one of the taps conv1, conv2"),
        ({"vector_dim": 0}, "vector_dim is 0, expected the length of the vector"),
    ],
)
def test_a_backbone_with_a_wrong_attribute_is_caught(attributes: dict[str, Any], problem: str) -> None:
    assert_found(problem, trial(NIN, **attributes))


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (wired(code=lambda code, mean: mean), "forward called code 0 times, expected once"),
        (wired(code=lambda code, mean: code(code(mean))), "forward called code 2 times, expected once"),
        (wired(code=lambda code, mean: code(mean.flatten(2)).view_as(mean)), r"\(3, 10, 64\), expected \(3, 10, 'H'"),
        (wired(code=lambda code, mean: (code(mean), mean)[1]), "the vector is the same whatever code returns"),
        (wired(result=lambda vector, taps: (vector[:, :-1], taps)), r"vector is \(3, 9\) float32, expected \(3, 10\)"),
        (wired(want=lambda want: ["conv1"]), "conv4, classifier, it gave conv1"),
        (wired(want=lambda want: [*want, "conv1"]), "asked for no tap, it gave conv1"),
        (
            wired(result=lambda vector, taps: (vector, {n: t[:, :-1] for n, t in taps.items()})),
            r"conv1 has shape \(3, 4, 16, 16\)",
        ),
        (Unseeded, r"1 of \d+ weights differ, the first is conv4\.0\.0\.weight"),
        (Renamed, "built twice, the weights have other names"),
        (Hidden, "register its other tensors as buffers"),
        (wired(result=lambda vector, taps: (dropout(vector + 1, 0.5), taps)), "the same images gave two vectors"),
        (wired(result=lambda vector, taps: (vector - vector.sum(0) - 1, taps)), "depends on the rest of its batch"),
        (Idle, r"2 weights have no part in the vector, the first is idle\.weight"),
        (wired(result=lambda vector, taps: (explosive(vector), taps)), "weights get NaN or infinity, the first is conv1"),
        (Colour, "RuntimeError"),
    ],
)
def test_a_backbone_that_fails_a_requirement_is_caught(kind: type[NIN], problem: str) -> None:
    assert_found(problem, trial(kind))


# transformations

OWN = torch.Generator().manual_seed(0)


def mutant(**methods: Any) -> GeometricFamily:
    """The projective family with other methods or attributes; a method gets the true one's result and its arguments."""
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


@pytest.mark.parametrize(
    ("methods", "problem"),
    [
        ({"kind": "magic"}, "kind is 'magic'"),
        ({"names": ("a",) * 16}, "names needs one for each value"),
        ({"units": ("px",)}, "16 names have 1 units, expected one each"),
        ({"sample": lambda p, *a: p + torch.rand(()).double()}, "sample used torch's own generator"),
        ({"sample": lambda p, *a: p + torch.rand((), generator=OWN).double()}, "gave two samples"),
        ({"sample": lambda p, *a: p.float()}, r"gave \(64, 8\) float32, expected \(64, k\) float64"),
        ({"sample": lambda p, *a: p.to("meta")}, "NotImplementedError|on meta"),
        (
            {"statistics": lambda s, size: (s[0], s[1] * 2)},
            "u0 of the target has mean .* and deviation 0.5.*, expected about 0 and 1",
        ),
        ({"statistics": lambda s, size: (s[0].float(), s[1])}, r"the mean is \(16,\) float32, expected \(16,\) float64"),
        ({"target": lambda t, *a: t[:, :-1]}, r"the target is \(20000, 15\) float64, expected \(20000, 16\)"),
        ({"decode": lambda p, *a: p * 1.001}, r"target\(decode\(target\)\) is off by"),
        ({"decode": lambda p, *a: p[:, :-1]}, r"the decoded target is \(64, 7\) float64, expected \(64, 8\)"),
        ({"decode": lambda p, *a: explosive(p)}, "the gradient of decode is none, NaN or infinite"),
        ({"apply": lambda m, *a: m[..., 1:]}, r"apply made \(8, 1, 32, 31\)"),
        ({"apply": lambda m, *a: m + 0.5}, "values from .* to .*, expected 0 to 1"),
        ({"apply": lambda m, x, p: x.mul_(0.5)}, "changed its input images"),
        ({"apply": lambda m, *a: m * torch.rand(())}, "two results for the same"),
        ({"apply": lambda m, *a: m * m.mean()}, "depends on its batch"),
        (
            {"in_from_out": lambda m, *a: torch.linalg.inv(m)},
            "transform images differently, by up to .*: in_from_out maps an output",
        ),
        ({"in_from_out": lambda m, *a: m[:, :2]}, r"in_from_out is \(8, 2, 3\)"),
        ({"n_classes": 4}, "NotImplementedError: ProjectiveDistribution has no classes"),
    ],
)
def test_a_family_that_fails_a_requirement_is_caught(methods, problem: str) -> None:
    assert_found(problem, run_checks(transform.CHECKS, mutant(**methods)))


def test_decoding_to_another_warp_of_the_same_target_is_caught() -> None:
    family = rotation()
    family.decode = lambda target, size: torch.zeros(len(target), 1, dtype=target.dtype)
    family.target = lambda parameters, size: torch.zeros(len(parameters), 2, dtype=parameters.dtype)

    assert_found("another warp", [run_check(transform.decoding_is_the_inverse, family)])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c + 1, "run from 1 to 4, expected 0 to 3"),
        (lambda c: c.double(), r"the tensor of classes is \(64,\) float64"),
    ],
)
def test_classes_out_of_range_or_of_another_type_are_caught(change, problem: str) -> None:
    family = rotation()
    true = family.classes
    family.classes = lambda parameters: change(true(parameters))

    assert_found(problem, run_checks(transform.CHECKS, family))


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


def listed_split(listing: bytes, *, again: MemorySplit | None = None) -> MemorySplit:
    part = split(listing=lambda: listing)
    part.with_listing = lambda listing: again or part  # type: ignore[method-assign]
    return part


LISTING = b"".join(b"train/%d\0facts\n" % i for i in range(6))


def test_a_data_set_that_meets_every_requirement_passes() -> None:
    for data in (images(), images(train=split(labels=None), classes=None), images(test=listed_split(LISTING))):
        assert problems(list(run_checks(dataset.CHECKS, DatasetSubject(data, lambda data=data: data)))) == {}


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        ({"test": split(images=torch.zeros(0, 1, 8, 10))}, "test is empty; a missing split is None"),
        ({"channels": 3}, r"train train/0 is \(1, 8, 10\) uint8, expected \(3, H, W\) uint8"),
        ({"size": (10, 8)}, r"is \(8, 10\) px, the data set states"),
        ({"train": split(read=noise)}, "train/0 was read twice and"),
        ({"train": split(read=lambda i: torch.zeros_like(noise(i)))}, r"train/0 differs between read\(0\) and images\[0\]"),
        ({"train": split(labels=torch.zeros(5).long())}, r"the tensor of train labels is \(5,\) int64, expected \(6,\) int64"),
        ({"train": split(labels=torch.arange(6) - 1)}, "begin at -1, expected 0 or more"),
        ({"classes": ("a", "b")}, "reach 2 with 2 class names"),
        ({"train": split(name=lambda i: "same")}, "6 images of train have 1 names"),
        ({"mean": (0.5,) * 3}, "mean has 3 values for 1 channels"),
        ({"mean": (125.0,)}, r"mean is \(125\.0,\), expected values in"),
        ({"std": (0.0,)}, r"std is \(0\.0,\), expected values above 0"),
        ({"fingerprint": ""}, "the fingerprints are '' and ''"),
        ({"train": listed_split(LISTING[:-14])}, "train has 6 images and lists 5"),
        ({"train": listed_split(LISTING, again=listed_split(b""))}, "train with its own listing gives another one"),
        (
            {"train": listed_split(LISTING, again=split(images=torch.zeros(5, 1, 8, 10)))},
            "6 images, and 5 with its own listing",
        ),
        ({"train": listed_split(LISTING.replace(b"/5", b"/6"))}, "image 5 of train is train/5, listed as train/6, and then"),
    ],
)
def test_a_data_set_that_fails_a_requirement_is_caught(over, problem: str) -> None:
    data = images(**over)

    assert_found(problem, run_checks(dataset.CHECKS, DatasetSubject(data, lambda: data)))


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
    assert_found(problem, run_checks(dataset.CHECKS, DatasetSubject(images(), lambda: again)))


# objectives


def under_test(
    build=avt, change: Callable[[Objective], object] = lambda objective: None, **families: Any
) -> ObjectiveUnderTest:
    """An objective that is changed after it is built."""

    def make(family: TransformFamily) -> Objective:
        made: Objective = build(vector_dim=objective.VECTOR_DIM, family=family)
        change(made)
        return made

    return ObjectiveUnderTest(make, families or {"projective": projective()})


def with_loss(loss: Callable[[Loss], Loss]) -> Callable[[Objective], object]:
    """Replace the loss by a function of the true one."""

    def change(made: Objective) -> None:
        true = made.forward
        made.forward = lambda codes, targets: loss(true(codes, targets))

    return change


@pytest.mark.parametrize("build", [avt, aet, gaussian, rotnet, simclr])
def test_an_objective_that_keeps_the_contract_passes(build) -> None:
    families = {"rotation": rotation()} if build is rotnet else {"projective": projective()}
    subject = under_test(
        (lambda *, vector_dim, family: simclr(vector_dim=vector_dim)) if build is simclr else build, **families
    )

    assert problems(run_checks(objective.CHECKS, subject)) == {}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda o: setattr(o, "noise_scale", -1.0), r"noise_scale is -1\.0, expected a number of 0 or more"),
        (lambda o: setattr(o, "views", ("original",)), r"views is \('original',\), expected a tuple of roles"),
        (lambda o: setattr(o, "prediction", "angle"), "prediction is 'angle', expected target, classes or None"),
        (
            lambda o: setattr(o, "decoder", Decoder(48, 3, log_var_scale=1.0)),
            r"mean with projective is \(16, 3\) float32, expected \(16, 16\), finite",
        ),
        (
            with_loss(lambda loss: Loss(loss.per_sample.mean())),
            r"the loss with projective is \(\) float32, expected \(16,\), finite",
        ),
        (
            with_loss(lambda loss: Loss(loss.per_sample, {"odd": loss.per_sample / 0})),
            r"odd with projective is \(16,\) float32 with NaN or infinity, expected \(16,\)",
        ),
        (with_loss(lambda loss: Loss(loss.per_sample + torch.rand(()))), "the same codes gave two losses"),
        (
            with_loss(lambda loss: Loss(loss.per_sample - loss.per_sample.mean())),
            "a sample's loss depends on the rest of its batch: state depends_on_batch = True",
        ),
        (lambda o: setattr(o, "spare", nn.Linear(2, 2)), r"the gradient of spare\.weight is missing, NaN or infinite"),
        (
            with_loss(lambda loss: Loss(loss.per_sample * torch.nan)),
            "the gradient of the code of view 0 is missing, NaN or infinite",
        ),
        (with_loss(lambda loss: Loss(-loss.per_sample)), "with projective, the truth has the loss .* and a guess"),
    ],
)
def test_an_objective_that_breaks_the_contract_is_caught(change, problem: str) -> None:
    assert_found(problem, run_checks(objective.CHECKS, under_test(change=change)))
