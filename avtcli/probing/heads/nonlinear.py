"""AlexNet's layers above its last convolution, as in the ImageNet evaluation."""

from collections.abc import Sequence

from torch import nn

from avtcli.probing.head import Head, TrainedHead
from avtcli.probing.heads._layers import conv_unit, init_linear, linear_units, require_map

WIDTH = 4096


def nonlinear(*, conv_first: tuple[str, ...] = ()) -> Head:
    """Max-pooling, two hidden layers and a linear layer.

    Source: the release's ImageNet/architectures/NonLinearClassifier.py.

    Args:
        conv_first: layers whose head begins with a 3x3 convolution, as in the release on conv4.
    """

    def build(layer: str, shape: Sequence[int], classes: int) -> nn.Sequential:
        require_map("nonlinear", shape)
        return _build(shape, classes, conv_first=layer in conv_first)

    return TrainedHead("max-pooling 3/2, twice 4096 units with BatchNorm and ReLU, linear", "none", build)


def _build(shape: Sequence[int], classes: int, *, conv_first: bool) -> nn.Sequential:
    channels, height, width = shape
    first = conv_unit(channels, 3, bias=True) if conv_first else []
    if min(height, width) >= 3:  # a smaller map is not pooled
        first.append(nn.MaxPool2d(3, 2))
        height, width = (height - 1) // 2, (width - 1) // 2
    units = linear_units(channels * height * width, WIDTH, WIDTH)
    return nn.Sequential(*first, nn.Flatten(), *units, init_linear(nn.Linear(WIDTH, classes)))
