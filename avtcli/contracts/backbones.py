"""The contract of a backbone. Shapes: B images, C channels, H rows, W columns."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

Code = Callable[[Tensor], Tensor]
"""Takes the map at the code tap, (B, C, H, W), and returns the code to go on with, of the same shape."""


class Backbone(nn.Module, ABC):
    """A network that hands its map at one place to the encoder and goes on with what comes back.

    A concrete backbone sets the three attributes and defines `forward`; nothing else is asked of it.
    """

    taps: Mapping[str, int]
    """The places where features can be read, in order: name -> channels. A tap is (B, C, H, W), or (B, C) for a vector."""
    code_tap: str
    """The tap whose map is the mean of the code."""
    vector_dim: int
    """The length of the vector that the decoder sees."""

    @abstractmethod
    def forward(self, x: Tensor, code: Code, want: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode images.

        Args:
            x: normalised images, (B, C, H, W).
            code: called once, with the map at `code_tap`; the layers after it work on what it returns.
            want: the taps to hand out. The code tap itself is the encoder's affair and never asked for here.

        Returns:
            The vector, (B, vector_dim), and the wanted taps by name.
        """

    def bare(self) -> nn.Module:
        """Return the network with its own parameter names, as its library saves them: a submodule, or this module itself."""
        return self


@dataclass(frozen=True)
class PublishedCheckpoint:
    """How a published checkpoint of a backbone maps to ours.

    Attributes:
        recipe: the recipe of the published run.
        modules: each module of the published encoder that holds tensors, and the name of ours.
    """

    recipe: str
    modules: Mapping[str, str]
