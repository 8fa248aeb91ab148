"""Statistics of features that indicate a collapse."""

import math

import torch
from torch import Tensor

from avtcli.errors import AvtError


def effective_rank(features: Tensor) -> float:
    """RankMe: exp(-sum p log p) with p = s / sum(s) + 1e-7 for the singular values s of uncentred features.

    Source: Garrido et al., "RankMe: assessing the downstream performance of pretrained self-supervised representations by
    their rank" (2023), equation 1. Features that are all zero count as collapsed: about 1.

    Args:
        features: (n, d); computed in float64 on the CPU.

    Returns:
        About 1 for collapsed features, about min(n, d) for isotropic ones.

    Raises:
        AvtError: if a feature is not finite.
    """
    singular = torch.linalg.svdvals(require_finite(features).detach().to("cpu", torch.float64))
    p = singular / singular.sum().clamp(min=torch.finfo(torch.float64).tiny) + 1e-7
    return math.exp(-(p * p.log()).sum().item())


def column_std(features: Tensor) -> float:
    """The standard deviation over the rows (with n, not n - 1), averaged over the columns of (n, d)."""
    return features.to("cpu", torch.float64).std(0, correction=0).mean().item()


def require_finite(features: Tensor) -> Tensor:
    """Return the features, whatever their shape.

    Raises:
        AvtError: if one is infinite or NaN, which would sort and compare silently.
    """
    if not features.isfinite().all():
        raise AvtError("The features contain infinities or NaN, so nothing can be measured on them. Did the training diverge?")
    return features
