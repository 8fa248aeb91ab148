"""Gaussian likelihood and coverage against torch.distributions, exact samples and cases computed by hand."""

import math

import pytest
import torch
from scipy.stats import norm
from torch.distributions import Normal

from avtcli.metrics.calibration import calibration_error, coverage, fit_temperature, gaussian_nll
from avtcli.seeding import keyed_generator

LEVELS = (0.5, 0.8, 0.95)


def test_the_likelihood_is_that_of_torch_distributions() -> None:
    mean, log_var, target = 3 * torch.randn(3, 50, 4, generator=keyed_generator("test"), dtype=torch.float64)
    expected = -Normal(mean, (log_var / 2).exp()).log_prob(target).sum(1)

    torch.testing.assert_close(gaussian_nll(mean, log_var, target), expected)


def test_the_nll_is_least_where_the_variance_is_the_squared_error() -> None:
    log_var = torch.linspace(-4, 4, 81, dtype=torch.float64)[:, None]
    error = torch.full_like(log_var, math.exp(0.5))

    assert gaussian_nll(torch.zeros_like(log_var), log_var, error).argmin() == 50  # log_var = 1


def test_targets_sampled_from_the_prediction_have_nominal_coverage() -> None:
    n = 20_000
    generator = keyed_generator("test")
    mean, log_var, noise = torch.randn(3, n, 3, generator=generator)
    shares = coverage(mean, log_var, mean + (log_var / 2).exp() * noise, LEVELS)
    levels = torch.tensor(LEVELS, dtype=torch.float64)[:, None]

    assert shares.shape == (3, 3)
    assert shares.dtype == torch.float64
    assert ((shares - levels).abs() < 4 * (levels * (1 - levels) / n).sqrt()).all()


@pytest.mark.parametrize("level", [0.1, 0.5, 0.8, 0.95, 0.999])
def test_the_interval_ends_at_the_quantile_of_the_normal_distribution(level: float) -> None:
    end = norm.ppf((1 + level) / 2)
    targets = 10 + 3 * torch.tensor([[-end - 1e-6, -end + 1e-6, end - 1e-6, end + 1e-6]], dtype=torch.float64)
    log_var = torch.full((1, 4), 2 * math.log(3), dtype=torch.float64)

    assert coverage(torch.full((1, 4), 10.0), log_var, targets, [level]).tolist() == [[0.0, 1.0, 1.0, 0.0]]


def test_columns_are_counted_separately() -> None:
    mean = torch.zeros(4, 3)
    target = torch.tensor([[0.0, 9.0, 0.0], [0.0, 9.0, 9.0], [0.0, -9.0, 1.0], [0.0, -9.0, -1.0]])

    assert coverage(mean, torch.zeros(4, 3), target, [0.5, 0.8]).tolist() == [[1.0, 0.0, 0.25], [1.0, 0.0, 0.75]]


def test_an_overconfident_prediction_covers_too_little() -> None:
    mean, noise = torch.zeros(5000, 1), torch.randn(5000, 1, generator=keyed_generator("test"))
    narrow, exact, wide = (coverage(mean, torch.full((5000, 1), log_var), noise, LEVELS) for log_var in (-2.0, 0.0, 2.0))

    assert (narrow < exact).all()
    assert (exact < wide).all()


def test_parameters_off_in_opposite_directions_do_not_cancel() -> None:
    shares = torch.tensor([[0.3, 0.7], [0.9, 0.7]], dtype=torch.float64)

    assert calibration_error(shares, (0.5, 0.8)) == pytest.approx((0.2 + 0.2 + 0.1 + 0.1) / 4)
    assert calibration_error(torch.tensor([[0.5], [0.8]], dtype=torch.float64), (0.5, 0.8)) == 0


def test_no_other_factor_of_the_variance_is_more_likely_than_the_temperature() -> None:
    mean, log_var, target = 3 * torch.randn(3, 50, 4, generator=keyed_generator("test"), dtype=torch.float64)
    best = math.log(fit_temperature(mean, log_var, target))
    nll = [gaussian_nll(mean, log_var + best + step, target).mean().item() for step in (-1, -0.01, 0, 0.01, 1)]

    assert min(nll) == nll[2]
