"""Classifier heads on frozen features."""

from math import sqrt

from torch import Tensor, nn
from torch.nn import functional


def pool_features(features: Tensor, pool: str, side: int) -> Tensor:
    """Reduce maps to side x side by adaptive max or average pooling.

    Args:
        features: (B, C, H, W); a vector (B, C) passes as it is.
        pool: max, avg or none.
        side: of the result, in cells; not used for none.

    Returns:
        (B, C, side, side), or the features as they are.
    """
    if features.ndim == 2 or pool == "none":
        return features
    adaptive = functional.adaptive_max_pool2d if pool == "max" else functional.adaptive_avg_pool2d
    return adaptive(features, side)


def init_linear(linear: nn.Linear) -> nn.Linear:
    """Weights N(0, sqrt(2 / outputs)), bias 0, as the release's heads start."""
    nn.init.normal_(linear.weight, 0, sqrt(2 / linear.out_features))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


class LinearHead(nn.Module):
    """BatchNorm without affine parameters over the channels, then one linear layer on the flattened map.

    Args:
        shape: of one feature, (C,) or (C, H, W).
        classes: the number of classes.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(shape[0], affine=False) if len(shape) == 1 else nn.BatchNorm2d(shape[0], affine=False)
        cells = 1
        for length in shape:
            cells *= length
        self.linear = init_linear(nn.Linear(cells, classes))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, *shape) give logits (B, classes)."""
        out: Tensor = self.linear(self.norm(features).flatten(1))
        return out
