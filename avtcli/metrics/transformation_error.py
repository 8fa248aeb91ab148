"""Errors of decoded transformations: corner error, turns by 90 degrees, R2 and retrieval."""

from collections.abc import Sequence

import torch
from torch import Tensor

from avtcli.geometry.homography import corners_of, map_points
from avtcli.metrics.feature_statistics import require_finite


def corner_error(true_in_from_out: Tensor, decoded_in_from_out: Tensor, size: tuple[int, int]) -> Tensor:
    """The mean distance between the output image's corners mapped by the true and by the decoded matrix: (n,), pixels.

    Its mean over samples is MACE, the mean average corner error. No inverse is taken, so that it is finite for the constant
    predictor too. Matrices are (n, 3, 3), the size is (height, width).
    """
    corners = corners_of(size).to(true_in_from_out)
    difference = map_points(true_in_from_out, corners) - map_points(decoded_in_from_out, corners)
    return difference.square().sum(-1).sqrt().mean(-1)


def r2_scores(predicted: Tensor, truth: Tensor) -> tuple[Tensor, float]:
    """The coefficient of determination, 1 - SSE / SST, of predictions (n, d): 1 is perfect, the column means score 0.

    Returns:
        One score per column, (d,) float64 on the CPU, nan for a constant column of the truth; and the pooled
        1 - sum SSE / sum SST over the other columns, nan where there is none.
    """
    predicted, truth = (values.detach().to("cpu", torch.float64) for values in (predicted, truth))
    unexplained = (truth - predicted).square().sum(0)
    total = (truth - truth.mean(0)).square().sum(0)
    varies = truth.amax(0) > truth.amin(0)  # exact, unlike the sum of squares about a rounded mean
    scores = torch.where(varies, 1 - unexplained / total, torch.nan)
    return scores, (1 - unexplained[varies].sum() / total[varies].sum()).item()


def retrieval_ranks(decoded: Tensor, true: Tensor) -> Tensor:
    """The rank of each version's own true parameters among those of all versions of its image, nearest first.

    Both arguments are (g, b, d), for g images and b versions of each. Distances are Euclidean, from the decoded parameters.
    Equal distances share their mean rank, so that a constant decoder has the mean rank (b + 1) / 2.

    Source: Garrido et al., "Self-supervised learning of split invariant equivariant representations" (2023).

    Returns:
        (g, b), float64, on the CPU, in [1, b].

    Raises:
        AvtError: if a decoded parameter is not finite.
    """
    decoded, true = (values.detach().to("cpu", torch.float64) for values in (require_finite(decoded), true))
    distances = torch.cdist(decoded, true, compute_mode="donot_use_mm_for_euclid_dist")
    own = distances.diagonal(dim1=1, dim2=2)[..., None]
    nearer, equal = (distances < own).sum(2), (distances == own).sum(2)
    return nearer + (equal + 1).to(torch.float64) / 2


def retrieval_scores(ranks: Tensor, hits: Sequence[int] = (1, 5)) -> tuple[float, list[float]]:
    """MRR, the mean of 1 / rank, and H@k, the fraction of ranks of at most k: all in [0, 1], 1 is perfect."""
    ranks = ranks.to(torch.float64)
    return (1 / ranks).mean().item(), [(ranks <= k).to(torch.float64).mean().item() for k in hits]
