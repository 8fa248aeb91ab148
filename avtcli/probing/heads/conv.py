"""Convolutional classifier, as in the CIFAR-10 evaluation."""

from collections.abc import Sequence

from torch import nn

from avtcli.probing.head import Head, TrainedHead
from avtcli.probing.heads._layers import conv_unit, init_linear, require_map


def conv() -> Head:
    """A NIN block and a linear layer."""
    description = "a NIN block (3x3, 1x1, 1x1) of the features' channels, global average pooling, linear"
    return TrainedHead(description, "none", _build)


def _build(layer: str, shape: Sequence[int], classes: int) -> nn.Sequential:
    require_map("conv", shape)
    units = [module for kernel in (3, 1, 1) for module in conv_unit(shape[0], kernel, bias=False)]
    return nn.Sequential(*units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), init_linear(nn.Linear(shape[0], classes)))
