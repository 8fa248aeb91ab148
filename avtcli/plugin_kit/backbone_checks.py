"""Conformance checks of backbones: taps, code, shapes, weights and their gradients."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from avtcli import registry
from avtcli.contracts import Backbone, Code, Size
from avtcli.errors import AvtError
from avtcli.plugin_kit.checking import Trial, checks_of, expect, expect_tensor
from avtcli.seeding import keyed_generator, seed_of

BATCH: Final = 3
CHANNELS: Final = 3
SIZES: Final = ((32, 32), (224, 224))  # the first that the backbone does not refuse


@dataclass(frozen=True)
class BackboneSubject:
    """A backbone: how to build it from a seed and a number of channels, built from seed 0, and the size of its images."""

    make: Callable[[int, int], Backbone]
    network: Backbone
    size: Size

    def images(self, channels: int = CHANNELS) -> Tensor:
        """Fixed normalised images, (BATCH, C, H, W)."""
        return torch.randn(BATCH, channels, *self.size, generator=keyed_generator("conformance images"))


def trial(spec: str) -> Trial:
    """Build a backbone for its checks."""

    def make(seed: int, channels: int, size: Size) -> Backbone:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(seed, "weights"))
            made: Backbone = registry.build("backbone", spec, {}, in_channels=channels, image_size=size)
            return made

    try:
        size, network = SIZES[0], make(0, CHANNELS, SIZES[0])
    except AvtError:
        size, network = SIZES[1], make(0, CHANNELS, SIZES[1])
    return CHECKS, BackboneSubject(lambda seed, channels: make(seed, channels, size), network, size)


@torch.no_grad()
def _encode(
    network: Backbone, x: Tensor, code: Code = lambda mean: mean, want: Collection[str] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    return network.eval()(x, code, want)  # type: ignore[no-any-return]


def _differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or not torch.allclose(a, b, rtol=1e-3, atol=1e-5)


def the_taps_have_names_and_channels_and_the_code_is_one_of_them(subject: BackboneSubject) -> str:
    """`taps`, `code_tap` and `vector_dim` are set."""
    taps, code_tap, dim = dict(subject.network.taps), subject.network.code_tap, subject.network.vector_dim
    named = all(isinstance(name, str) and isinstance(channels, int) and channels > 0 for name, channels in taps.items())
    expect(named, f"taps needs names with their channels, found {taps}")
    expect(code_tap in taps, f"code_tap is {code_tap!r}, expected one of the taps {', '.join(taps)}")
    expect(isinstance(dim, int) and dim > 0, f"vector_dim is {dim!r}, expected the length of the vector")
    return ", ".join(f"{name} {channels}" for name, channels in taps.items())


def the_code_is_called_once_with_the_map_of_its_tap(subject: BackboneSubject) -> str:
    """`forward` calls `code` one time, with (B, C, H, W)."""
    network, calls = subject.network, list[tuple[int, ...]]()

    def code(mean: Tensor) -> Tensor:
        calls.append(tuple(mean.shape))
        return mean

    _encode(network, subject.images(), code)
    expect(len(calls) == 1, f"forward called code {len(calls)} times, expected once")
    shape, expected = calls[0], (BATCH, network.taps[network.code_tap])
    fine = len(shape) == 4 and shape[:2] == expected
    expect(fine, f"code got a map of shape {shape}, expected {(*expected, 'H', 'W')}")
    return "x".join(map(str, shape[1:]))


def the_vector_and_the_wanted_taps_have_the_stated_shapes(subject: BackboneSubject) -> str:
    """The vector is (B, vector_dim); the taps are those requested, (B, C, H, W) or (B, C)."""
    network, x = subject.network, subject.images()
    names = [name for name in network.taps if name != network.code_tap]
    vector, taps = _encode(network, x, want=names)
    expect_tensor("the vector", vector, (BATCH, network.vector_dim))
    expect(set(taps) == set(names), f"asked for the taps {', '.join(names)}, it gave {', '.join(taps) or 'none'}")
    for name, features in taps.items():
        shape, stated = tuple(features.shape), (BATCH, network.taps[name])
        fine = len(shape) in (2, 4) and shape[:2] == stated
        expect(fine, f"the tap {name} has shape {shape}, expected {stated} or {(*stated, 'H', 'W')}")
    unasked = _encode(network, x)[1]
    expect(not unasked, f"asked for no tap, it gave {', '.join(unasked)}")
    return f"vector {network.vector_dim}"


def the_layers_after_the_code_use_what_it_returns(subject: BackboneSubject) -> None:
    """Another code gives another vector: otherwise the encoder's noise has no effect."""
    x = subject.images()
    noisy = _encode(subject.network, x, lambda mean: mean + torch.randn(mean.shape, generator=keyed_generator("noise")))[0]
    expect(_differ(_encode(subject.network, x)[0], noisy), "the vector is the same whatever code returns")


def one_seed_makes_one_network(subject: BackboneSubject) -> str:
    """Every weight is drawn from torch's generator, so that a seed determines it."""
    first, second = subject.network.state_dict(), subject.make(0, CHANNELS).state_dict()
    expect(list(first) == list(second), "built twice, the weights have other names")
    other = [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
    problem = f"built twice from one seed, {len(other)} of {len(first)} weights differ, the first is {', '.join(other[:1])}"
    expect(not other, problem)
    return f"{sum(parameter.numel() for parameter in subject.network.parameters()):,} parameters"


def its_state_dict_is_its_complete_state(subject: BackboneSubject) -> None:
    """Another instance that loads it gives the same features, as with checkpoints and exported files."""
    other, x = subject.make(1, CHANNELS), subject.images()
    other.load_state_dict(subject.network.state_dict())
    expect(
        not _differ(_encode(subject.network, x)[0], _encode(other, x)[0]),
        "built from another seed and given the same state_dict, it gives another vector: register its other tensors as buffers",
    )


def in_eval_mode_a_vector_depends_on_its_image_alone(subject: BackboneSubject) -> None:
    """It is a function of the image, whatever else is in the batch."""
    x = subject.images()
    vector = _encode(subject.network, x)[0]
    expect(torch.equal(vector, _encode(subject.network, x)[0]), "in eval mode, the same images gave two vectors")
    expect(not _differ(vector[:1], _encode(subject.network, x[:1])[0]), "an image's vector depends on the rest of its batch")


def every_weight_gets_a_finite_gradient(subject: BackboneSubject) -> None:
    """Training in several processes waits for the gradient of each weight."""
    network, x = subject.make(0, CHANNELS).train(), subject.images().requires_grad_()
    network(x, lambda mean: mean)[0].square().sum().backward()
    weights = {name: weight.grad for name, weight in network.named_parameters() if weight.requires_grad}
    without = [name for name, gradient in weights.items() if gradient is None]
    expect(not without, f"{len(without)} weights have no part in the vector, the first is {', '.join(without[:1])}")
    odd = [name for name, gradient in weights.items() if gradient is not None and not gradient.isfinite().all()]
    expect(not odd, f"{len(odd)} weights get NaN or infinity, the first is {', '.join(odd[:1])}")
    expect(x.grad is not None and bool(x.grad.isfinite().all()), "the gradient of the images is missing or not finite")


def grey_images_are_taken_or_refused_with_a_message(subject: BackboneSubject) -> str:
    """One channel works, or raises an AvtError."""
    try:
        network = subject.make(0, 1)
    except AvtError:
        return "refused"
    expect(len(_encode(network, subject.images(1))[0]) == BATCH, "images of one channel give no vector each")
    return "taken"


CHECKS: Final = checks_of(BackboneSubject, globals())
