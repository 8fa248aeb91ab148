"""Adaptive pooling of feature maps."""

from torch import Tensor
from torch.nn import functional


def pool_features(features: Tensor, pool: str, side: int) -> Tensor:
    """Reduce maps (B, C, H, W) to (B, C, side, side) by adaptive pooling: max, avg or none.

    The side, in cells, is limited to that of the map. Vectors (B, C) are returned unchanged, and so are maps for none.
    """
    if features.ndim == 2 or pool == "none":
        return features
    adaptive = functional.adaptive_max_pool2d if pool == "max" else functional.adaptive_avg_pool2d
    return adaptive(features, min(side, *features.shape[2:]))
