"""Classifier heads on frozen features, as the release builds them; channels, sizes and classes follow the features."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod, sqrt
from typing import Final

from torch import Tensor, nn

from avtcli.errors import AvtError

HEADS: Final = ("linear", "mlp1", "mlp2", "mlp3", "conv", "nonlinear")
"""The kinds of head that are trained in steps."""


LINEAR_HEADS: Final = ("linear", "mlp1")
"""A `LinearHead`, named as the ImageNet and as the CIFAR recipes do."""


MLP_WIDTH: Final = 200  # the release's cifar/NonLinearClassifier.py


NONLINEAR_WIDTH: Final = 4096  # the release's ImageNet/architectures/NonLinearClassifier.py: AlexNet's own


def init_linear(linear: nn.Linear) -> nn.Linear:
    """Weights N(0, sqrt(2 / outputs)), bias 0, as the release's heads start."""
    nn.init.normal_(linear.weight, 0, sqrt(2 / linear.out_features))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def init_conv(conv: nn.Conv2d) -> nn.Conv2d:
    """Weights N(0, sqrt(2 / (k k outputs))), as the release's heads start; a bias keeps PyTorch's own."""
    nn.init.normal_(conv.weight, 0, sqrt(2 / (prod(conv.kernel_size) * conv.out_channels)))
    return conv


class LinearHead(nn.Module):
    """BatchNorm without affine parameters over the channels, then one linear layer on the flattened map.

    Args:
        shape: of one feature, (C,) or (C, H, W).
        classes: the number of classes.
    """

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(shape[0], affine=False) if len(shape) == 1 else nn.BatchNorm2d(shape[0], affine=False)
        self.linear = init_linear(nn.Linear(prod(shape), classes))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, *shape) give logits (B, classes)."""
        out: Tensor = self.linear(self.norm(features).flatten(1))
        return out


def _full_units(*widths: int) -> list[nn.Module]:
    """Linear without bias, BatchNorm, ReLU, from each width to the next."""
    units: list[nn.Module] = []
    for a, b in pairwise(widths):
        units += [init_linear(nn.Linear(a, b, bias=False)), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
    return units


def _conv_unit(channels: int, kernel: int, *, bias: bool) -> list[nn.Module]:
    """Convolution that keeps size and channels, BatchNorm, ReLU."""
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=bias)
    return [init_conv(conv), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def mlp_head(shape: Sequence[int], classes: int, *, hidden: int) -> nn.Sequential:
    """So many hidden layers of 200 units (linear without bias, BatchNorm, ReLU) on the flattened map, then a linear layer.

    Args:
        shape: of one feature, (C,) or (C, H, W).
        classes: the number of classes.
        hidden: 1 for the release's two FC layers, 2 for its three.
    """
    units = _full_units(prod(shape), *[MLP_WIDTH] * hidden)
    return nn.Sequential(nn.Flatten(), *units, init_linear(nn.Linear(MLP_WIDTH, classes)))


def conv_head(shape: Sequence[int], classes: int) -> nn.Sequential:
    """The third NIN block (3x3, 1x1, 1x1, each without bias, BatchNorm, ReLU), the global average, then a linear layer.

    Args:
        shape: of one feature, (C, H, W); the block keeps its channels.
        classes: the number of classes.
    """
    units = [layer for kernel in (3, 1, 1) for layer in _conv_unit(shape[0], kernel, bias=False)]
    return nn.Sequential(*units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), init_linear(nn.Linear(shape[0], classes)))


def nonlinear_head(shape: Sequence[int], classes: int, *, conv_first: bool = False) -> nn.Sequential:
    """What AlexNet has above its last convolution: max-pooling 3/2, two hidden layers of 4096 units, a linear layer.

    Args:
        shape: of one feature, (C, H, W); a map of fewer than 3 cells a side is not pooled.
        classes: the number of classes.
        conv_first: whether a 3x3 convolution (with bias, BatchNorm, ReLU) comes before, as the release has it on conv4.
    """
    channels, height, width = shape
    first = _conv_unit(channels, 3, bias=True) if conv_first else []
    if min(height, width) >= 3:
        first.append(nn.MaxPool2d(3, 2))
        height, width = (height - 1) // 2, (width - 1) // 2
    units = _full_units(channels * height * width, NONLINEAR_WIDTH, NONLINEAR_WIDTH)
    return nn.Sequential(*first, nn.Flatten(), *units, init_linear(nn.Linear(NONLINEAR_WIDTH, classes)))


def build_head(kind: str, shape: Sequence[int], classes: int, *, conv_first: bool = False) -> nn.Module:
    """Make a head with fresh weights, from the global generator.

    Args:
        kind: one of `HEADS`.
        shape: of one feature, (C,) or (C, H, W).
        classes: the number of classes.
        conv_first: for nonlinear, whether a convolution comes first.

    Raises:
        AvtError: for a head that needs a map on a vector.
    """
    if kind in ("conv", "nonlinear") and len(shape) != 3:
        raise AvtError(
            f"The head '{kind}' needs a map (channels, rows, columns), this layer gives a vector of {shape[0]}. "
            "Give --head linear, mlp2 or mlp3, or another --layer."
        )
    if kind in ("mlp2", "mlp3"):
        return mlp_head(shape, classes, hidden=int(kind[-1]) - 1)
    if kind == "conv":
        return conv_head(shape, classes)
    if kind == "nonlinear":
        return nonlinear_head(shape, classes, conv_first=conv_first)
    return LinearHead(shape, classes)
