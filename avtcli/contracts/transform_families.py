"""The contract of a family of transformations. Shapes: n draws, k parameters, dof target numbers; B, C, H, W of images."""

from abc import ABC, abstractmethod
from typing import Literal

from torch import Generator, Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""


class TransformFamily(ABC):
    """A distribution of random transformations, and the decoding of predicted targets.

    Convention:
        - sampled parameters are (n, k), float64, on the CPU
        - targets are (n, dof), normalised to about zero mean and unit standard deviation by `statistics`
        - in_from_out matrices map an output pixel (x, y, 1) to an input pixel, Pillow's direction
    """

    kind: Literal["geometric", "photometric", "mixed"]
    names: tuple[str, ...]
    """Names of the target's components."""
    units: tuple[str, ...]
    """Units of the target's components; an empty string for a pure number."""
    n_classes: int | None = None
    """The number of classes, for families that can be classified."""

    @property
    def dof(self) -> int:
        """The length of a target."""
        return len(self.names)

    @abstractmethod
    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Sample the parameters of n transformations for images of a size: (n, k), float64."""

    @abstractmethod
    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Transform a batch: float images (B, C, H, W) in [0, 1] and parameters (B, k) give the same shape and range."""

    @abstractmethod
    def statistics(self, size: Size) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the raw target under this distribution: (dof,) each, float64."""

    @abstractmethod
    def target(self, parameters: Tensor, size: Size) -> Tensor:
        """Convert parameters (n, k) to the normalised targets (n, dof) that the decoder predicts."""

    @abstractmethod
    def decode(self, target: Tensor, size: Size) -> Tensor:
        """Convert normalised targets (n, dof) to parameters (n, k): the inverse of `target`, differentiable."""

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """Return the matrices (n, 3, 3) of a geometric family's warps.

        Raises:
            NotImplementedError: for a photometric family.
        """
        raise NotImplementedError(f"{type(self).__name__} has no matrix")

    def classes(self, parameters: Tensor) -> Tensor:
        """Return the class of each transformation, (n,) int64.

        Raises:
            NotImplementedError: for a family without classes.
        """
        raise NotImplementedError(f"{type(self).__name__} has no classes")
