"""All randomness of one epoch but the noise of the encoder, one row per sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from avtcli.contracts import Size, TransformFamily
from avtcli.seeding import keyed_generator


def batch_bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """Where each batch of an epoch begins and ends: the partial last one is kept, a single sample joins the batch before."""
    bounds = [(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] == 1:
        bounds[-2:] = [(bounds[-2][0], count)]
    return bounds


@dataclass(frozen=True)
class EpochTable:
    """All randomness of one epoch but the encoder's noise, a row a sample.

    Attributes:
        order: the samples in the order of training, (n,) int64.
        uniforms: for crop and flip, (n, 3) float64.
        parameters: of the transformations, (n, k) float64.
        targets: normalised, (n, dof) float64.
    """

    order: Tensor
    uniforms: Tensor
    parameters: Tensor
    targets: Tensor


def sample_uniforms(seed: int, epoch: int, count: int) -> Tensor:
    """Draw one epoch's crops and flips: (count, 3) float64 in [0, 1), a row an image, as `core.augment` reads them."""
    return torch.rand(count, 3, generator=keyed_generator(seed, epoch, "crop and flip"), dtype=torch.float64)


def sample_epoch_table(seed: int, epoch: int, count: int, family: TransformFamily, size: Size) -> EpochTable:
    """Draw one epoch's table, each column by a generator of its own."""
    parameters = family.sample(count, size, keyed_generator(seed, epoch, "transform"))
    return EpochTable(
        order=torch.randperm(count, generator=keyed_generator(seed, epoch, "order")),
        uniforms=sample_uniforms(seed, epoch, count),
        parameters=parameters,
        targets=family.target(parameters, size),
    )
