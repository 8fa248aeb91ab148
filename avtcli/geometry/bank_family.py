"""A bank: a family whose draw picks rows of parameters that were drawn before."""

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size, TransformFamily


class BankFamily(TransformFamily):
    """Draws uniformly, with replacement, from stored parameters; everything else is the family's they were drawn from.

    Args:
        family: it carries the bank's statistics.
        rows: parameters, (N, k).
    """

    def __init__(self, family: TransformFamily, rows: Tensor) -> None:
        self.family = family
        self.rows = rows
        self.kind, self.names, self.units, self.n_classes = family.kind, family.names, family.units, family.n_classes

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Rows of the bank, (n, k), float64."""
        return self.rows[torch.randint(len(self.rows), (n,), generator=generator)].double()

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """As the family."""
        return self.family.apply(images, parameters)

    def statistics(self, size: Size) -> tuple[Tensor, Tensor]:
        """As the family."""
        return self.family.statistics(size)

    def target(self, parameters: Tensor, size: Size) -> Tensor:
        """As the family."""
        return self.family.target(parameters, size)

    def decode(self, target: Tensor, size: Size) -> Tensor:
        """As the family."""
        return self.family.decode(target, size)

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """As the family."""
        return self.family.in_from_out(parameters, size)

    def classes(self, parameters: Tensor) -> Tensor:
        """As the family."""
        return self.family.classes(parameters)
