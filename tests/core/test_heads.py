"""Pooling and the linear head."""

import math

import pytest
import torch

from avtcli.core.heads import LinearHead, init_linear, pool_features


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


def test_the_head_normalises_each_channel_without_affine_and_then_is_linear() -> None:
    torch.manual_seed(0)
    head, maps = LinearHead((3, 2, 2), 5), torch.randn(6, 3, 2, 2) * 4 + 1
    mean, var = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), unbiased=False, keepdim=True)
    by_hand = ((maps - mean) / (var + 1e-5).sqrt()).flatten(1) @ head.linear.weight.T + head.linear.bias

    torch.testing.assert_close(head(maps), by_hand)
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]


def test_linear_weights_start_as_the_release_starts_them() -> None:
    torch.manual_seed(0)
    linear = init_linear(torch.nn.Linear(5000, 50))

    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 50), rel=0.01)
    assert not linear.bias.any()
