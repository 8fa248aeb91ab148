"""Pooling, and the heads where the golden numbers do not reach: their start, the non-linear one, and what they refuse."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli.errors import AvtError
from avtcli.features.pooling import pool_features
from avtcli.probing.head_modules import HEADS, LinearHead, build_head, init_linear, nonlinear_head


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_pooling_reduces_windows_as_by_hand(pool: str) -> None:
    maps = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    windows = maps.view(2, 3, 4, 2, 4, 2)
    by_hand = windows.amax((3, 5)) if pool == "max" else windows.mean((3, 5))

    torch.testing.assert_close(pool_features(maps, pool, 4), by_hand)


def test_no_pooling_and_vectors_pass_as_they_are() -> None:
    maps, vectors = torch.randn(2, 3, 5, 5), torch.randn(2, 3)

    assert pool_features(maps, "none", 4) is maps
    assert pool_features(vectors, "max", 4) is vectors


def test_the_linear_head_normalises_each_channel_without_affine_and_then_is_linear() -> None:
    torch.manual_seed(0)
    head, maps = LinearHead((3, 2, 2), 5), torch.randn(6, 3, 2, 2) * 4 + 1
    mean, var = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), unbiased=False, keepdim=True)
    by_hand = ((maps - mean) / (var + 1e-5).sqrt()).flatten(1) @ head.linear.weight.T + head.linear.bias

    torch.testing.assert_close(head(maps), by_hand)
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]


def test_linear_weights_start_as_the_release_starts_them() -> None:
    torch.manual_seed(0)
    linear = init_linear(nn.Linear(5000, 50))

    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 50), rel=0.01)
    assert not linear.bias.any()


@pytest.mark.parametrize("kind", HEADS)
def test_every_layer_of_a_head_starts_as_the_release_starts_it(kind: str) -> None:
    torch.manual_seed(0)
    head = build_head(kind, (64, 4, 4), 40, conv_first=True)
    layers = [layer for layer in head.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]

    for layer in layers:
        fan_out = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels * math.prod(layer.kernel_size)
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            assert not layer.bias.any()
    assert isinstance(layers[-1], nn.Linear)
    assert layers[-1].bias is not None
    assert all(layer.bias is None for layer in layers[:-1] if isinstance(layer, nn.Linear))


def test_the_nonlinear_head_has_the_published_shapes() -> None:
    with torch.device("meta"):
        conv4 = nonlinear_head((256, 13, 13), 1000, conv_first=True)
        conv5 = nonlinear_head((256, 13, 13), 1000)
    full = [(4096, 9216), (4096,), (4096,), (4096, 4096), (4096,), (4096,), (1000, 4096), (1000,)]

    assert [tuple(p.shape) for p in conv5.parameters()] == full
    assert [tuple(p.shape) for p in conv4.parameters()] == [(256, 256, 3, 3), (256,), (256,), (256,), *full]


def _normalised(x: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, training=True)


def test_the_nonlinear_head_is_convolution_pooling_and_three_layers() -> None:
    torch.manual_seed(0)
    head, maps = nonlinear_head((3, 5, 5), 4, conv_first=True), torch.randn(6, 3, 5, 5)
    conv, first, second, last = (layer for layer in head if isinstance(layer, (nn.Conv2d, nn.Linear)))
    x = functional.max_pool2d(_normalised(functional.conv2d(maps, conv.weight, conv.bias, padding=1)).relu(), 3, 2)
    x = _normalised(x.flatten(1) @ first.weight.T).relu()
    x = _normalised(x @ second.weight.T).relu()

    torch.testing.assert_close(head(maps), x @ last.weight.T + last.bias, rtol=1e-4, atol=1e-4)


def test_the_nonlinear_head_does_not_pool_a_map_that_is_too_small_for_it() -> None:
    head = nonlinear_head((3, 2, 2), 4)

    assert not any(isinstance(layer, nn.MaxPool2d) for layer in head)
    assert head(torch.randn(2, 3, 2, 2)).shape == (2, 4)


@pytest.mark.parametrize("kind", ["linear", "mlp1", "mlp2", "mlp3"])
def test_heads_without_convolutions_take_vectors(kind: str) -> None:
    assert build_head(kind, (6,), 4)(torch.randn(3, 6)).shape == (3, 4)


@pytest.mark.parametrize("kind", ["conv", "nonlinear"])
def test_a_head_that_needs_a_map_refuses_a_vector(kind: str) -> None:
    with pytest.raises(AvtError, match=rf"The head '{kind}' needs a map .*, this layer gives a vector of 6\. Give --head"):
        build_head(kind, (6,), 4)
