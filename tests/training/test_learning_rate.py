"""Rates as functions of the epoch."""

import pytest
import torch

from avtcli.config.components import Piece
from avtcli.training.optimizer import cosine_rate, piecewise_rate, rates_at
from tests.support import tiny_config


def test_pieces_hold_from_their_start_and_change_by_their_slope() -> None:
    pieces = [Piece(start=0, rate=1.0), Piece(start=10, rate=5.0, slope=-0.5)]

    assert [piecewise_rate(pieces, epoch) for epoch in (0, 9.9, 10, 12)] == [1.0, 1.0, 5.0, 4.0]


def test_the_cosine_is_torchs_cosine_after_a_linear_warm_up() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90)
    expected = []
    for _ in range(90):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()

    assert [cosine_rate(step / 100, peak=0.3, warmup=0.1) for step in range(10, 100)] == pytest.approx(expected)
    assert [cosine_rate(step / 100, peak=0.3, warmup=0.1) for step in (0, 5)] == pytest.approx([0, 0.15])


def test_fewer_epochs_shrink_the_schedule_and_a_limit_of_steps_does_not() -> None:
    pieces = [{"start": 0, "rate": 1.0}, {"start": 50, "rate": 0.1}]
    schedule = {"epochs": 100, "pieces": pieces}
    short = tiny_config(schedule=schedule, epochs=10)
    limited = tiny_config(schedule=schedule, epochs=None, max_steps=10)

    assert [rates_at(short, epoch * 7, 7)[0] for epoch in range(10)] == [1.0] * 5 + [0.1] * 5
    assert [rates_at(limited, epoch * 7, 7)[0] for epoch in (0, 49, 50)] == [1.0, 1.0, 0.1]


def test_the_schedule_may_give_the_log_variance_layer_other_rates() -> None:
    pieces = [{"start": 0, "rate": 1e-3}]
    with_own = tiny_config(schedule={"epochs": 4, "pieces": pieces, "log_var_pieces": [{"start": 0, "rate": 1e-2}]})
    without = tiny_config(schedule={"epochs": 4, "pieces": pieces})

    assert rates_at(with_own, 0, 3) == (1e-3, 1e-2)
    assert rates_at(without, 0, 3) == (1e-3, 1e-3)
