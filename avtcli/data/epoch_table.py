"""All randomness of one epoch but the noise of the encoder, one row per sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from avtcli.contracts import Size, TransformFamily
from avtcli.errors import AvtError
from avtcli.seeding import keyed_generator


def batch_bounds(count: int, batch_size: int, *, world: int = 1) -> list[tuple[int, int]]:
    """Split an epoch into batches, (first, last excluded); a rest below two samples per process joins the batch before."""
    bounds = [(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] < 2 * world:
        bounds[-2:] = [(bounds[-2][0], count)]
    return bounds


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
    alone, together = (len(batch_bounds(count, batch_size, world=processes)) for processes in (1, world))
    return count % batch_size if together < alone else 0


@dataclass(frozen=True)
class EpochTable:
    """The random draws of one epoch."""

    order: Tensor  # the samples in the order of training, (n,) int64
    uniforms: Tensor  # for crop and flip, (n, 3) float64
    parameters: tuple[Tensor, ...]  # of each transformed view's transformations, (n, k) float64
    targets: tuple[Tensor, ...]  # of each transformed view, normalised, (n, dof) float64


def sample_uniforms(seed: int, epoch: int, count: int) -> Tensor:
    """Sample the crops and flips of one epoch: (count, 3) float64 in [0, 1), as `geometry.cropping` reads them."""
    return torch.rand(count, 3, generator=keyed_generator(seed, epoch, "crop and flip"), dtype=torch.float64)


def sample_epoch_table(
    seed: int, epoch: int, count: int, family: TransformFamily, size: Size, *, transformed: int = 1
) -> EpochTable:
    """Sample the table of one epoch for `count` samples and the number of transformed views, each column by a generator."""
    keys = ["transform", *(f"transform {view}" for view in range(1, transformed))]
    parameters = tuple(family.sample(count, size, keyed_generator(seed, epoch, key)) for key in keys)
    return EpochTable(
        order=torch.randperm(count, generator=keyed_generator(seed, epoch, "order")),
        uniforms=sample_uniforms(seed, epoch, count),
        parameters=parameters,
        targets=tuple(family.target(own, size) for own in parameters),
    )
