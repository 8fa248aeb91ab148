"""The sum of families: one transformation after another, as one family."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size, TransformFamily
from avtcli.errors import AvtError
from avtcli.geometry.geometric_family import GeometricFamily
from avtcli.geometry.homography import product
from avtcli.geometry.warp import Outside, warp
from avtcli.seeding import keyed_generator


class SumFamily(TransformFamily):
    """First a, then b: parameters and targets stand side by side in that order, each part drawn by a generator of its own.

    Warps that follow each other and agree on what lies outside become one: their matrices are multiplied, so that an image
    is resampled, and filled, once. The matrix of a mixed sum is that of its geometric parts; photometric parts work on each
    pixel's place, so that it does not matter where among them they stand. Classes are those of the only part that has some.

    Args:
        parts: (name, family), in the order of application; target numbers are called `NAME.number`.

    Raises:
        AvtError: if two parts have the same name.
    """

    def __init__(self, parts: Sequence[tuple[str, TransformFamily]]) -> None:
        names = [name for name, _ in parts]
        for name in names:
            if names.count(name) > 1:
                raise AvtError(f"The sum '{'+'.join(names)}' has '{name}' twice: its options could not tell them apart.")
        self.parts = [family for _, family in parts]
        self.names = tuple(f"{name}.{number}" for name, family in parts for number in family.names)
        self.units = tuple(unit for family in self.parts for unit in family.units)
        kinds = {family.kind for family in self.parts}
        self.kind = kinds.pop() if len(kinds) == 1 else "mixed"
        classified = [family for family in self.parts if family.n_classes is not None]
        self.classified = classified[0] if len(classified) == 1 else None
        self.n_classes = self.classified.n_classes if self.classified is not None else None
        # the contract does not state how many parameters a family has: one draw tells
        self.widths = [family.sample(1, (32, 32), keyed_generator("width")).shape[1] for family in self.parts]

    def _split(self, parameters: Tensor) -> Iterator[tuple[TransformFamily, Tensor]]:
        return zip(self.parts, torch.split(parameters, self.widths, dim=1), strict=True)

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """The parts' parameters side by side, (n, sum of k)."""
        seeds = torch.randint(2**63 - 1, (len(self.parts),), generator=generator).tolist()
        own = [Generator().manual_seed(seed) for seed in seeds]
        return torch.cat([part.sample(n, size, g) for part, g in zip(self.parts, own, strict=True)], 1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """One part after another, warps that follow each other as one."""
        size = (images.shape[-2], images.shape[-1])
        for key, group in groupby(self._split(parameters), key=lambda pair: _outside(pair[0])):
            steps = list(group)
            if key is None or len(steps) == 1:
                for family, own in steps:
                    images = family.apply(images, own)
            else:
                matrix = _chain([family.in_from_out(own, size) for family, own in steps])
                images = warp(images, matrix, fill=key[0], truncate=key[1])
        return images

    def statistics(self, size: Size) -> tuple[Tensor, Tensor]:
        """The parts' figures side by side."""
        means, stds = zip(*(family.statistics(size) for family in self.parts), strict=True)
        return torch.cat(means), torch.cat(stds)

    def target(self, parameters: Tensor, size: Size) -> Tensor:
        """The parts' targets side by side."""
        return torch.cat([family.target(own, size) for family, own in self._split(parameters)], 1)

    def decode(self, target: Tensor, size: Size) -> Tensor:
        """The parts' parameters side by side."""
        targets = torch.split(target, [family.dof for family in self.parts], dim=1)
        return torch.cat([family.decode(own, size) for family, own in zip(self.parts, targets, strict=True)], 1)

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """The product of the geometric parts' matrices, (n, 3, 3).

        Raises:
            NotImplementedError: if all parts are photometric.
        """
        matrices = [f.in_from_out(own, size) for f, own in self._split(parameters) if f.kind != "photometric"]
        return _chain(matrices) if matrices else super().in_from_out(parameters, size)

    def classes(self, parameters: Tensor) -> Tensor:
        """The classes of the only part that has some.

        Raises:
            NotImplementedError: if none has, or several have.
        """
        for family, own in self._split(parameters):
            if family is self.classified:
                return family.classes(own)
        return super().classes(parameters)


def _outside(family: TransformFamily) -> tuple[Outside, bool] | None:
    """What two warps must share to become one; none for a family that is no warp of ours."""
    return (family.geometry.outside, family.geometry.truncate) if isinstance(family, GeometricFamily) else None


def _chain(matrices: list[Tensor]) -> Tensor:
    """The matrix of the first warp, then the next: the input of the second is the output of the first."""
    in_from_out = matrices[0]
    for matrix in matrices[1:]:
        in_from_out = product(in_from_out, matrix)
    return in_from_out
