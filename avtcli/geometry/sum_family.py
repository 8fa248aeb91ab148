"""A sum of families: transformations applied one after another, as one family."""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import groupby

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size, TransformFamily
from avtcli.geometry.geometric_family import GeometricFamily
from avtcli.geometry.homography import product
from avtcli.geometry.warp import Outside, warp
from avtcli.seeding import keyed_generator


class SumFamily(TransformFamily):
    """Apply the parts in order; parameters, targets, names and statistics are concatenated in that order.

    Each part samples from its own generator. Consecutive warps with the same fill become one by the product of their matrices,
    so that an image is resampled once. The matrix of a mixed sum is that of its geometric parts, since photometric parts move
    no pixel. The classes are those of the only part that has classes.

    Args:
        parts: (name, family), in the order of application; target components are named `NAME.component`.
    """

    def __init__(self, parts: Sequence[tuple[str, TransformFamily]]) -> None:
        self.parts = [family for _, family in parts]
        self.names = tuple(f"{name}.{component}" for name, family in parts for component in family.names)
        self.units = tuple(unit for family in self.parts for unit in family.units)
        kinds = {family.kind for family in self.parts}
        self.kind = kinds.pop() if len(kinds) == 1 else "mixed"
        classified = [family for family in self.parts if family.n_classes is not None]
        self.classified = classified[0] if len(classified) == 1 else None
        self.n_classes = self.classified.n_classes if self.classified is not None else None
        # the contract does not state the number of parameters: one sample shows it
        self.widths = [family.sample(1, (32, 32), keyed_generator("width")).shape[1] for family in self.parts]

    def _split(self, parameters: Tensor) -> Iterator[tuple[TransformFamily, Tensor]]:
        return zip(self.parts, torch.split(parameters, self.widths, dim=1), strict=True)

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """The parameters of all parts, (n, sum of k)."""
        seeds = torch.randint(2**63 - 1, (len(self.parts),), generator=generator).tolist()
        seeded = zip(self.parts, seeds, strict=True)
        return torch.cat([family.sample(n, size, Generator().manual_seed(seed)) for family, seed in seeded], 1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Apply one part after another; consecutive warps with the same fill are one."""
        size = (images.shape[-2], images.shape[-1])
        for fill, group in groupby(self._split(parameters), key=lambda pair: _fill(pair[0])):
            steps = list(group)
            if fill is None or len(steps) == 1:
                for family, own in steps:
                    images = family.apply(images, own)
            else:
                matrix = reduce(product, [family.in_from_out(own, size) for family, own in steps])
                images = warp(images, matrix, fill=fill[0], truncate=fill[1])
        return images

    def statistics(self, size: Size) -> tuple[Tensor, Tensor]:
        """The statistics of all parts, (dof,) each."""
        means, stds = zip(*(family.statistics(size) for family in self.parts), strict=True)
        return torch.cat(means), torch.cat(stds)

    def target(self, parameters: Tensor, size: Size) -> Tensor:
        """The targets of all parts, (n, dof)."""
        return torch.cat([family.target(own, size) for family, own in self._split(parameters)], 1)

    def decode(self, target: Tensor, size: Size) -> Tensor:
        """The parameters of all parts, (n, sum of k)."""
        targets = torch.split(target, [family.dof for family in self.parts], dim=1)
        return torch.cat([family.decode(own, size) for family, own in zip(self.parts, targets, strict=True)], 1)

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """The product of the geometric parts' matrices, (n, 3, 3).

        Raises:
            NotImplementedError: if all parts are photometric.
        """
        matrices = [f.in_from_out(own, size) for f, own in self._split(parameters) if f.kind != "photometric"]
        return reduce(product, matrices) if matrices else super().in_from_out(parameters, size)

    def classes(self, parameters: Tensor) -> Tensor:
        """The classes of the only part that has classes.

        Raises:
            NotImplementedError: if no part has classes, or several have.
        """
        for family, own in self._split(parameters):
            if family is self.classified:
                return family.classes(own)
        return super().classes(parameters)


def _fill(family: TransformFamily) -> tuple[Outside, bool] | None:
    """What two warps must share to become one; none for other families."""
    return (family.options.outside, family.options.truncate) if isinstance(family, GeometricFamily) else None
