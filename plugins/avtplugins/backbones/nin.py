"""Network in Network, as AVT and AET use it on CIFAR-10."""

from collections.abc import Collection
from itertools import product
from math import sqrt

from torch import Tensor, nn

from avtcli.contracts import Backbone, Code, PublishedCheckpoint
from avtcli.errors import AvtError
from avtcli.models.layers import StemConv2d


def conv_unit(in_channels: int, out_channels: int, kernel: int, *, kind: type[nn.Conv2d] = nn.Conv2d) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU; "same" padding."""
    conv = kind(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.normal_(conv.weight, 0, sqrt(2 / (kernel * kernel * out_channels)))
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class NIN(Backbone):
    """Four blocks of three conv-BN-ReLU units; the code is the pooled map after block 2; global average pooling at the end.

    32 px images give conv1 96x16x16, conv2 192x8x8 (the code), conv3 and conv4 192x8x8, classifier 192, at width 1.

    Weights: the release's cifar/NetworkInNetwork.py with four stages; initialisation N(0, sqrt(2 / (k k out))).
    """

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__()
        c192, c160, c96 = (max(1, round(c * width)) for c in (192, 160, 96))
        first = conv_unit(in_channels, c192, 5, kind=StemConv2d), conv_unit(c192, c160, 1), conv_unit(c160, c96, 1)
        self.conv1 = nn.Sequential(*first, nn.MaxPool2d(3, 2, 1))
        second = conv_unit(c96, c192, 5), conv_unit(c192, c192, 1), conv_unit(c192, c192, 1)
        self.conv2 = nn.Sequential(*second, nn.AvgPool2d(3, 2, 1))
        self.conv3 = nn.Sequential(*(conv_unit(c192, c192, k) for k in (3, 1, 1)))
        self.conv4 = nn.Sequential(*(conv_unit(c192, c192, k) for k in (3, 1, 1)))
        self.taps = {"conv1": c96, "conv2": c192, "conv3": c192, "conv4": c192, "classifier": c192}
        self.code_tap = "conv2"
        self.vector_dim = c192

    def forward(self, x: Tensor, code: Code, want: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode images (B, C, H, W) into a vector (B, vector_dim) and the wanted taps."""
        conv1 = self.conv1(x)
        conv3 = self.conv3(code(self.conv2(conv1)))
        conv4 = self.conv4(conv3)
        vector = conv4.mean((2, 3))
        taps = {"conv1": conv1, "conv3": conv3, "conv4": conv4, "classifier": vector}
        return vector, {name: taps[name] for name in want}


def nin(*, in_channels: int, width: float = 1.0) -> Backbone:
    """Network in Network with four blocks, for images of about 32 px; taps conv1 to conv4 and classifier.

    Args:
        in_channels: given by the data.
        width: multiplier of the channels, above 0 and at most 64; 1 is the published network.
    """
    if not 0 < width <= 64:
        raise AvtError(f"The backbone 'nin' needs a width above 0, found {width}. At most 64; the published network has 1.")
    return NIN(in_channels, width)


def input_size(variant: str | None) -> tuple[int, int]:
    """The side of CIFAR's images, and any other."""
    return 32, 1


def published_nin() -> PublishedCheckpoint:
    """The checkpoint of AVT's CIFAR-10 experiment."""
    layers = {"Conv": 0, "BatchNorm": 1}
    units = {
        f"nin._feature_blocks.{b}.Block{b + 1}_ConvB{u + 1}.layers.{layer}": f"encoder.backbone.conv{b + 1}.{u}.{i}"
        for b, u, (layer, i) in product(range(4), range(3), layers.items())
    }
    log_var = {f"nin._feature_blocks.1.Block2_Encode.layers.{layer}": f"encoder.log_var.{i}" for layer, i in layers.items()}
    return PublishedCheckpoint("cifar10-nin", {**units, **log_var})
