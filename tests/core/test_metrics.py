"""Figures of merit against the published and the hand-worked."""

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from avtcli import registry
from avtcli.core.homography import matrix_from_coefficients
from avtcli.core.keyed import keyed_generator
from avtcli.core.metrics import corner_error, topk_percent


@pytest.mark.parametrize(("side", "identity", "constant"), [(32, 29.0, 23.5), (224, 202, 164)])
def test_the_trivial_predictors_have_the_corner_error_that_the_law_gives_them(
    side: int, identity: float, constant: float
) -> None:
    size = (side, side)
    family = registry.build("transform", "projective", {})
    drawn = family.draw(100_000, size, keyed_generator("test"))
    true = family.in_from_out(drawn, size)
    mean = matrix_from_coefficients(drawn.mean(0, keepdim=True)).expand(len(true), -1, -1)

    assert corner_error(true, torch.eye(3, dtype=torch.float64).expand_as(true), size).mean() == pytest.approx(
        identity, rel=0.01
    )
    assert corner_error(true, mean, size).mean() == pytest.approx(constant, rel=0.01)


def test_the_corner_error_of_a_shift_is_its_length() -> None:
    shift = torch.eye(3, dtype=torch.float64)[None].clone()
    shift[0, :2, 2] = torch.tensor([3.0, 4.0])

    assert corner_error(shift, torch.eye(3, dtype=torch.float64)[None], (10, 20)).tolist() == [5.0]


@pytest.mark.parametrize("k", [1, 3])
def test_top_k_is_scikit_learns(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 6, generator=generator), torch.randint(6, (200,), generator=generator)

    assert topk_percent(logits, labels, k) == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=k))


def test_equal_logits_count_in_the_order_of_the_classes() -> None:
    assert topk_percent(torch.zeros(4, 4), torch.arange(4), 1) == 25.0
