"""Calibration of predicted Gaussians: likelihood, coverage of intervals, and a temperature of the variance."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def gaussian_nll(mean: Tensor, log_var: Tensor, target: Tensor) -> Tensor:
    """The negative log-likelihood -log N(target; mean, exp(log_var)) of independent Gaussians, constant included.

    All arguments are (n, d); the result is (n,), in nats, summed over d.
    """
    squared = (target - mean).square() * (-log_var).exp()
    return 0.5 * (squared + log_var + math.log(2 * math.pi)).sum(1)


def coverage(mean: Tensor, log_var: Tensor, target: Tensor, levels: Sequence[float]) -> Tensor:
    """The fraction of targets inside the central interval of each probability; a calibrated prediction gives the levels.

    The interval of probability p is mean +- sqrt(2) erfinv(p) exp(log_var / 2), its ends included. Mean, log_var and target
    are (n, d); the result is (levels, d), float64, on the CPU.
    """
    mean, log_var, target = (values.detach().to("cpu", torch.float64) for values in (mean, log_var, target))
    half_widths = math.sqrt(2) * torch.tensor(levels, dtype=torch.float64).erfinv()
    inside = (target - mean).abs() <= half_widths[:, None, None] * (log_var / 2).exp()
    return inside.to(torch.float64).mean(1)


def calibration_error(shares: Tensor, levels: Sequence[float]) -> float:
    """The expected calibration error: the mean of |observed - nominal| over levels and parameters, from shares (levels, d).

    Parameters are not pooled first: one that is too often inside does not make up for one that is too often outside.
    """
    return (shares - torch.tensor(levels, dtype=shares.dtype)[:, None]).abs().mean().item()


def fit_temperature(mean: Tensor, log_var: Tensor, target: Tensor) -> float:
    """The factor of all variances that maximises the likelihood: the mean of squared error over variance.

    All arguments are (n, d). With it, the derivative of the likelihood with respect to the factor is 0.
    """
    return ((target - mean).square() * (-log_var).exp()).mean().item()
