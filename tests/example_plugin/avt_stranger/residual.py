"""A small residual network."""

from collections.abc import Collection

from torch import Tensor, nn
from torch.nn import functional

from avtcli.contracts import Backbone, Code
from avtcli.errors import AvtError

CONTRACT_VERSION = 1


class Block(nn.Module):
    """Two convolutions around which the input is carried; the second one's BatchNorm begins at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.second_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(x + self.second_norm(self.second(inner)))


class StrangerNet(Backbone):
    """A stem that quarters the map, then blocks; the code is the map in the middle of them."""

    def __init__(self, in_channels: int, channels: int, blocks: int) -> None:
        super().__init__()
        stem = nn.Conv2d(in_channels, channels, 4, stride=4, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.ModuleList(Block(channels) for _ in range(blocks))
        self.taps = {"stem": channels, **{f"block{i + 1}": channels for i in range(blocks)}, "vector": channels}
        self.code_tap = f"block{(blocks + 1) // 2}"
        self.vector_dim = channels

    def forward(self, x: Tensor, code: Code, want: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode images (B, C, H, W) into a vector (B, channels) and the wanted taps."""
        x = self.stem(x)
        taps = {"stem": x}
        for i, block in enumerate(self.blocks):
            name = f"block{i + 1}"
            x = block(x)
            x = code(x) if name == self.code_tap else x
            taps[name] = x
        taps["vector"] = x.mean((2, 3))
        return taps["vector"], {name: taps[name] for name in want}


def stranger_net(*, in_channels: int, channels: int = 16, blocks: int = 4) -> Backbone:
    """A small residual network for images of any size; taps stem, block1 to blockN and vector.

    Args:
        in_channels: given by the data.
        channels: of every map.
        blocks: how many there are.
    """
    if channels < 1 or blocks < 1:
        raise AvtError(f"'stranger-net' needs channels and blocks of 1 or more, found {channels} and {blocks}.")
    return StrangerNet(in_channels, channels, blocks)
