"""All randomness of one epoch but the noise of the encoder, one row per sample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size, TransformFamily
from avtcli.errors import AvtError
from avtcli.seeding import keyed_generator

BLOCK: Final = 2**17
"""Samples of an epoch whose values are drawn together, in less than a second; a start waits for one block."""


def batch_count(count: int, batch_size: int, *, world: int = 1) -> int:
    """Return the number of batches of an epoch; a rest below two samples per process joins the batch before."""
    batches = -(-count // batch_size)
    rest = count - (batches - 1) * batch_size
    return batches - (batches > 1 and rest < 2 * world)


def batch_bounds(count: int, batch_size: int, *, world: int = 1) -> list[tuple[int, int]]:
    """Split an epoch into batches, (first, last excluded), see `batch_count`."""
    last = batch_count(count, batch_size, world=world) - 1
    return [(i * batch_size, count if i == last else (i + 1) * batch_size) for i in range(last + 1)]


def check_shares(count: int, batch_size: int, *, world: int) -> None:
    """Raise an `AvtError` where a batch of `count` images would leave one of several processes fewer than two."""
    batch = min(batch_size, count)
    if world > 1 and batch < 2 * world:
        raise AvtError(
            f"{world} processes need batches of {2 * world} images or more, this run has {batch}. Give fewer --processes or a "
            "larger --batch-size."
        )


def joined_rest(count: int, batch_size: int, *, world: int) -> int:
    """Return the images of the last batch that join the one before only because the processes are several; 0 for none."""
    alone, together = (batch_count(count, batch_size, world=processes) for processes in (1, world))
    return count % batch_size if together < alone else 0


class Draws:
    """Values of the samples of an epoch, drawn as they are read, a block of `BLOCK` positions of its order at once.

    In a block the samples have rows in the order of their indices: with a single block sample i has row i.

    Args:
        order: the samples in the order of training, (n,) int64.
        draw: returns the rows of a block, (m, k) each, by its number and m.
    """

    def __init__(self, order: Tensor, draw: Callable[[int, int], Sequence[Tensor]]) -> None:
        self._order, self._draw, self._number = order, draw, -1

    def read(self, positions: Tensor) -> list[Tensor]:
        """Return the values at positions of the order, (m,) int64 ascending: (m, k) each."""
        numbers = range(int(positions[0]) // BLOCK, int(positions[-1]) // BLOCK + 1)
        parts = [self._read(number, positions[positions // BLOCK == number] % BLOCK) for number in numbers]
        return parts[0] if len(parts) == 1 else [torch.cat(own) for own in zip(*parts, strict=True)]

    def _read(self, number: int, places: Tensor) -> list[Tensor]:
        if number != self._number:  # a batch may lie in two blocks, of which the second is read on
            samples = self._order[number * BLOCK : (number + 1) * BLOCK]
            self._rows = samples if len(samples) == len(self._order) else samples.argsort().argsort()
            self._columns, self._number = self._draw(number, len(samples)), number
        rows = self._rows[places]
        return [column[rows] for column in self._columns]


@dataclass(frozen=True)
class EpochTable:
    """The random draws of one epoch. They follow from seed, epoch and number of samples, wherever reading begins."""

    order: Tensor  # the samples in the order of training, (n,) int64
    uniforms: Draws  # for crop and flip, (n, 3) float64
    transformed: Draws  # of each transformed view: the parameters, (n, k) float64; then of each the targets, (n, dof) float64


def sample_uniforms(seed: int, epoch: int, count: int, *, block: int = 0) -> Tensor:
    """Sample the crops and flips of one epoch: (count, 3) float64 in [0, 1), as `geometry.cropping` reads them."""
    return torch.rand(count, 3, generator=_generator(seed, epoch, "crop and flip", block), dtype=torch.float64)


def sample_epoch_table(
    seed: int, epoch: int, count: int, family: TransformFamily, size: Size, *, transformed: int = 1
) -> EpochTable:
    """Make the table of one epoch for `count` samples and the number of transformed views, each column by a generator."""
    keys = ["transform", *(f"transform {view}" for view in range(1, transformed))]

    def transformations(block: int, rows: int) -> list[Tensor]:
        parameters = [family.sample(rows, size, _generator(seed, epoch, key, block)) for key in keys]
        return [*parameters, *(family.target(own, size) for own in parameters)]

    order = torch.randperm(count, generator=keyed_generator(seed, epoch, "order"))
    uniforms = Draws(order, lambda block, rows: [sample_uniforms(seed, epoch, rows, block=block)])
    return EpochTable(order, uniforms, Draws(order, transformations))


def _generator(seed: int, epoch: int, purpose: str, block: int) -> Generator:
    return keyed_generator(seed, epoch, purpose, *([block] if block else []))
