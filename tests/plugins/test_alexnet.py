"""AlexNet: its places, its one size, its weights at the start."""

from math import sqrt

import pytest
import torch

from avtcli import registry
from avtcli.errors import AvtError
from avtplugins.backbones.alexnet import AlexNet, alexnet

SHAPES = {
    "conv1": (64, 55, 55),
    "pool1": (64, 27, 27),
    "conv2": (192, 27, 27),
    "pool2": (192, 13, 13),
    "conv3": (384, 13, 13),
    "conv4": (256, 13, 13),
    "conv5": (256, 13, 13),
    "pool5": (256, 6, 6),
    "fc_block": (4096,),
}


@pytest.fixture(scope="module")
def network() -> AlexNet:
    torch.default_generator.manual_seed(0)
    made = alexnet(in_channels=1, image_size=(224, 224))
    assert isinstance(made, AlexNet)
    return made.eval()


def test_the_taps_have_the_published_names_order_and_shapes(network):
    seen = []

    def code(mean):
        seen.append(tuple(mean.shape[1:]))
        return mean

    wanted = [name for name in network.taps if name != network.code_tap]
    with torch.no_grad():
        vector, taps = network(torch.zeros(2, 1, 224, 224), code, wanted)
    shapes = {name: tuple(tap.shape[1:]) for name, tap in taps.items()} | {network.code_tap: seen[0]}
    assert shapes == SHAPES
    assert list(network.taps) == list(SHAPES)
    assert {name: shape[0] for name, shape in SHAPES.items()} == dict(network.taps)
    assert torch.equal(vector, taps["fc_block"])
    assert vector.shape[1] == network.vector_dim


def test_layers_after_the_code_work_on_what_the_code_returns(network):
    x = torch.linspace(0, 1, 224 * 224).reshape(1, 1, 224, 224)
    before, after = ("conv1", "pool1", "conv2", "pool2", "conv3"), ("conv5", "pool5", "fc_block")
    with torch.no_grad():
        _, plain = network(x, lambda mean: mean, [*before, *after])
        _, transformed = network(x, lambda mean: mean + 1, [*before, *after])
    assert all(torch.equal(plain[name], transformed[name]) for name in before)
    assert not any(torch.equal(plain[name], transformed[name]) for name in after)


def test_every_tap_after_a_relu_is_not_negative(network):
    with torch.no_grad():
        _, taps = network(
            torch.randn(1, 1, 224, 224, generator=torch.Generator().manual_seed(0)), lambda m: m, ["conv1", "conv5"]
        )
    assert all(tap.min() == 0 for tap in taps.values())


def test_weights_start_as_pytorch_starts_them(network):
    weight = network.fc_block[0].weight.detach()
    bound = 1 / sqrt(9216)  # uniform: a standard deviation of bound / sqrt(3)
    assert weight.abs().max() <= bound
    assert float(weight.std()) == pytest.approx(bound / sqrt(3), rel=1e-2)


def test_the_encoder_without_branch_and_heads_has_the_published_parameters(network):
    # from the shapes of the published checkpoint, for one channel in place of three
    convolutions = 64 * 121 + 192 * 64 * 25 + 384 * 192 * 9 + 256 * 384 * 9 + 256 * 256 * 9 + 1152
    norms = 2 * (1152 + 4096 + 4096)
    assert sum(p.numel() for p in network.parameters()) == convolutions + norms + 9216 * 4096 + 4096 * 4096


def test_another_image_size_is_refused_by_name_and_size():
    with pytest.raises(AvtError, match=r"'alexnet' takes images of 224x224 px, found 32x48"):
        alexnet(in_channels=3, image_size=(32, 48))


def test_the_registry_gives_the_image_size():
    with pytest.raises(AvtError, match=r"found 227x227\. Give `-o augment\.resize=256 -o augment\.crop=224`"):
        registry.build("backbone", "alexnet", {}, in_channels=3, image_size=(227, 227))
