"""Building blocks of heads, initialised as in the authors' release."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod, sqrt
from typing import Final

from torch import Tensor, nn

from avtcli.errors import AvtError

DESCRIPTION: Final = "BatchNorm without learned scale and shift, then a linear layer"
"""What a `LinearHead` is."""


def init_linear(linear: nn.Linear) -> nn.Linear:
    """Initialise weights from N(0, sqrt(2 / outputs)) and the bias with 0."""
    nn.init.normal_(linear.weight, 0, sqrt(2 / linear.out_features))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


class LinearHead(nn.Module):
    """BatchNorm without affine parameters over the channels of a feature (C,) or (C, H, W), then a flattened linear layer."""

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(shape[0], affine=False) if len(shape) == 1 else nn.BatchNorm2d(shape[0], affine=False)
        self.linear = init_linear(nn.Linear(prod(shape), classes))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, *shape) give logits (B, classes)."""
        logits: Tensor = self.linear(self.norm(features).flatten(1))
        return logits


def linear_units(*widths: int) -> list[nn.Module]:
    """Linear without bias, BatchNorm and ReLU from each width to the next."""
    units: list[nn.Module] = []
    for a, b in pairwise(widths):
        units += [init_linear(nn.Linear(a, b, bias=False)), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
    return units


def conv_unit(channels: int, kernel: int, *, bias: bool) -> list[nn.Module]:
    """A convolution that keeps size and channels, its weights from N(0, sqrt(2 / (k k outputs))), BatchNorm and ReLU."""
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=bias)
    nn.init.normal_(conv.weight, 0, sqrt(2 / (prod(conv.kernel_size) * channels)))
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def build_mlp(shape: Sequence[int], classes: int, *, hidden: int) -> nn.Sequential:
    """Hidden layers of 200 units on the flattened map, then a linear layer: the release's cifar/NonLinearClassifier.py."""
    units = linear_units(prod(shape), *[200] * hidden)
    return nn.Sequential(nn.Flatten(), *units, init_linear(nn.Linear(200, classes)))


def require_map(name: str, shape: Sequence[int]) -> None:
    """Raise AvtError if the shape is not (C, H, W)."""
    if len(shape) != 3:
        raise AvtError(
            f"The head '{name}' needs a map, this layer gives a vector of {shape[0]}. Give --head linear or another --layer."
        )
