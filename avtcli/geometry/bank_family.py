"""A family that samples from a bank of stored parameters."""

# ruff: noqa: D102 -- delegated methods inherit the docstrings of the contract

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size, TransformFamily


class BankFamily(TransformFamily):
    """Sample rows (N, k) uniformly, with replacement; all else is delegated to the family that the rows were sampled from."""

    def __init__(self, family: TransformFamily, rows: Tensor) -> None:
        self.family, self.rows = family, rows
        self.kind, self.names, self.units, self.n_classes = family.kind, family.names, family.units, family.n_classes

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Sample rows of the bank: (n, k), float64."""
        return self.rows[torch.randint(len(self.rows), (n,), generator=generator)].double()

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        return self.family.apply(images, parameters)

    def statistics(self, size: Size) -> tuple[Tensor, Tensor]:
        return self.family.statistics(size)

    def target(self, parameters: Tensor, size: Size) -> Tensor:
        return self.family.target(parameters, size)

    def decode(self, target: Tensor, size: Size) -> Tensor:
        return self.family.decode(target, size)

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        return self.family.in_from_out(parameters, size)

    def classes(self, parameters: Tensor) -> Tensor:
        return self.family.classes(parameters)
