"""AlexNet with BatchNorm, as AVT and AET use it on ImageNet."""

from collections.abc import Collection
from itertools import pairwise

from torch import Tensor, nn

from avtcli.contracts import Backbone, Code, PublishedCheckpoint, Size
from avtcli.errors import AvtError
from avtcli.models.layers import StemConv2d

SIZE = (224, 224)
"""(height, width) of the images: they give 256 maps of 6x6, the 9216 inputs of fc_block."""


def conv_unit(conv: nn.Conv2d) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))


def full_units(*widths: int) -> nn.Sequential:
    """Linear without bias, BatchNorm, ReLU, from each width to the next."""
    units = ((nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)) for a, b in pairwise(widths))
    return nn.Sequential(*(layer for unit in units for layer in unit))


class AlexNet(Backbone):
    """Five convolutions and two fully connected layers; the code is conv4's map.

    224 px images give conv1 64x55x55, pool1 64x27x27, conv2 192x27x27, pool2 192x13x13, conv3 384x13x13,
    conv4 256x13x13 (the code), conv5 256x13x13, pool5 256x6x6, fc_block 4096; each conv is read after its ReLU.

    Weights: the release's imagenet/AlexNet.py; initialisation is PyTorch's own.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv1 = conv_unit(StemConv2d(in_channels, 64, 11, stride=4, padding=2))
        self.conv2 = conv_unit(nn.Conv2d(64, 192, 5, padding=2))
        self.conv3 = conv_unit(nn.Conv2d(192, 384, 3, padding=1))
        self.conv4 = conv_unit(nn.Conv2d(384, 256, 3, padding=1))
        self.conv5 = conv_unit(nn.Conv2d(256, 256, 3, padding=1))
        self.pool = nn.MaxPool2d(3, 2)
        self.fc_block = full_units(256 * 6 * 6, 4096, 4096)
        self.taps = {
            **{"conv1": 64, "pool1": 64, "conv2": 192, "pool2": 192, "conv3": 384},
            **{"conv4": 256, "conv5": 256, "pool5": 256, "fc_block": 4096},
        }
        self.code_tap = "conv4"
        self.vector_dim = 4096

    def forward(self, x: Tensor, code: Code, want: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode images (B, C, 224, 224) into a vector (B, 4096) and the wanted taps."""
        conv1 = self.conv1(x)
        pool1 = self.pool(conv1)
        conv2 = self.conv2(pool1)
        pool2 = self.pool(conv2)
        conv3 = self.conv3(pool2)
        conv5 = self.conv5(code(self.conv4(conv3)))
        pool5 = self.pool(conv5)
        vector = self.fc_block(pool5.flatten(1))
        taps = {"conv1": conv1, "pool1": pool1, "conv2": conv2, "pool2": pool2, "conv3": conv3}
        taps |= {"conv5": conv5, "pool5": pool5, "fc_block": vector}
        return vector, {name: taps[name] for name in want}


def input_size(variant: str | None) -> tuple[int, int]:
    """The only side."""
    return SIZE[0], SIZE[0]


def alexnet(*, in_channels: int, image_size: Size) -> Backbone:
    """AlexNet with BatchNorm, for images of 224 px; taps conv1, pool1, conv2, pool2, conv3 to conv5, pool5 and fc_block."""
    if image_size != SIZE:
        found, options = "{}x{}".format(*image_size), "-o augment.resize=256 -o augment.crop=224"
        raise AvtError(f"The backbone 'alexnet' takes images of 224x224 px, found {found}. Give `{options}`.")
    return AlexNet(in_channels)


def published_alexnet() -> PublishedCheckpoint:
    """The checkpoint of AVT's ImageNet experiment."""
    blocks = {0: "conv1", 2: "conv2", 4: "conv3", 5: "conv4", 6: "conv5"}
    convs = {
        f"Alexnet._feature_blocks.{block}.{i}": f"encoder.backbone.{name}.{i}" for block, name in blocks.items() for i in (0, 1)
    }
    layers = enumerate(("Conv", "BatchNorm"))
    log_var = {f"Alexnet._feature_blocks.5.3.layers.{layer}": f"encoder.log_var.{i}" for i, layer in layers}
    # the published block begins with a flattening layer
    full = {f"Alexnet._feature_blocks.8.{i}": f"encoder.backbone.fc_block.{i - 1}" for i in (1, 2, 4, 5)}
    return PublishedCheckpoint("imagenet-alexnet", {**convs, **log_var, **full})
