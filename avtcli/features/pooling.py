"""Adaptive pooling of feature maps."""

from torch import Tensor
from torch.nn import functional


def pool_features(features: Tensor, pool: str, side: int) -> Tensor:
    """Reduce maps to side x side by adaptive max or average pooling.

    Args:
        features: (B, C, H, W); a vector (B, C) is returned unchanged.
        pool: max, avg or none.
        side: of the result, in cells; limited to that of the map, and not used for none.

    Returns:
        (B, C, side, side), or the features unchanged.
    """
    if features.ndim == 2 or pool == "none":
        return features
    adaptive = functional.adaptive_max_pool2d if pool == "max" else functional.adaptive_avg_pool2d
    return adaptive(features, min(side, *features.shape[2:]))
