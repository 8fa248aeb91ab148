"""Reducing maps by adaptive pooling."""

from torch import Tensor
from torch.nn import functional


def pool_features(features: Tensor, pool: str, side: int) -> Tensor:
    """Reduce maps to side x side by adaptive max or average pooling.

    Args:
        features: (B, C, H, W); a vector (B, C) passes as it is.
        pool: max, avg or none.
        side: of the result, in cells, at most the map's own; not used for none.

    Returns:
        (B, C, side, side), or the features as they are.
    """
    if features.ndim == 2 or pool == "none":
        return features
    adaptive = functional.adaptive_max_pool2d if pool == "max" else functional.adaptive_avg_pool2d
    return adaptive(features, min(side, *features.shape[2:]))
