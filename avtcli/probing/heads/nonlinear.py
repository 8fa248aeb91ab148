"""AlexNet's layers above its last convolution, as in the ImageNet evaluation."""

from collections.abc import Sequence

from torch import nn

from avtcli.probing.head import Head, TrainedHead
from avtcli.probing.heads._layers import conv_unit, init_linear, linear_units, require_map


def nonlinear(*, conv_first: tuple[str, ...] = ()) -> Head:
    """Max-pooling, two hidden layers and a linear layer.

    Source: the release's ImageNet/architectures/NonLinearClassifier.py.

    Args:
        conv_first: layers whose head begins with a 3x3 convolution, as in the release on conv4.
    """

    def build(layer: str, shape: Sequence[int], classes: int) -> nn.Sequential:
        require_map("nonlinear", shape)
        channels, height, width = shape
        first = conv_unit(channels, 3, bias=True) if layer in conv_first else []
        if min(height, width) >= 3:  # a smaller map is not pooled
            first.append(nn.MaxPool2d(3, 2))
            height, width = (height - 1) // 2, (width - 1) // 2
        units = linear_units(channels * height * width, 4096, 4096)
        return nn.Sequential(*first, nn.Flatten(), *units, init_linear(nn.Linear(4096, classes)))

    return TrainedHead("max-pooling 3/2, twice 4096 units with BatchNorm and ReLU, linear", "none", build)
