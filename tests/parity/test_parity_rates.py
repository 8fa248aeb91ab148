"""The learning rates of every epoch against the published formulas."""

import pytest
import torch
from torch import Tensor

from avtcli.config.resolution import resolve
from avtcli.training.optimizer import rates_at
from tests.parity.tolerances import assert_near

STEPS = 98


def column(rates: list[float]) -> Tensor:
    return torch.tensor(rates, dtype=torch.float64)


def cifar_rate(epoch: int) -> float:
    """5e-3 after a slow start, a fifth of it at four epochs, then falling on a line."""
    if epoch < 50:
        return 1e-3
    if epoch < 4000:
        return 5e-3 * 0.2 ** sum(epoch >= drop for drop in (3240, 3480, 3640, 3800))
    return 5e-3 * 0.0016 - 5e-3 * 3e-6 * (epoch - 4000)


@pytest.mark.parametrize("step_in_epoch", [0, STEPS - 1])
def test_the_cifar_rates_of_every_epoch_are_the_releases(step_in_epoch):
    config = resolve({}, recipe="cifar10-nin")
    assert config.total_epochs == 4500
    ours = [rates_at(config, epoch * STEPS + step_in_epoch, STEPS)[0] for epoch in range(4500)]
    golden = [cifar_rate(epoch) for epoch in range(4500)]
    assert_near("rates", "rate", column(ours), golden, scale=column(golden))


@pytest.mark.parametrize("step_in_epoch", [0, STEPS - 1])
def test_the_cifar_rates_of_the_log_variance_head_are_the_releases(step_in_epoch):
    config = resolve({}, recipe="cifar10-nin")
    ours = [rates_at(config, epoch * STEPS + step_in_epoch, STEPS)[1] for epoch in range(4500)]
    golden = [1e-2 if epoch < 3480 else 1e-5 for epoch in range(4500)]
    assert_near("rates", "log-variance rate", column(ours), golden, scale=column(golden))


@pytest.mark.parametrize("step_in_epoch", [0, STEPS - 1])
def test_the_imagenet_rates_of_every_epoch_are_the_releases_for_both_heads(step_in_epoch):
    config = resolve({}, recipe="imagenet-alexnet")
    assert config.total_epochs == 400
    golden = [1e-3 if epoch < 300 else 1e-4 if epoch < 350 else 1e-5 for epoch in range(400)]
    for head in (0, 1):
        ours = [rates_at(config, epoch * STEPS + step_in_epoch, STEPS)[head] for epoch in range(400)]
        assert_near("rates", "rate", column(ours), golden, scale=column(golden))
