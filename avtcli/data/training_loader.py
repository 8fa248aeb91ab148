"""Training batches: the views of each image with their targets, on the device, as a function of the step."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from avtcli.config.components import Augment
from avtcli.contracts import Role, Size, Target, TransformFamily
from avtcli.data.epoch_table import BLOCK, Draws, EpochTable, batch_bounds, sample_epoch_table
from avtcli.data.images import CropSpec, Images
from avtcli.geometry.cropping import to_float
from avtcli.runtime.capture import CapturedCalls
from avtcli.runtime.devices import to_device, upload

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """One training batch of this process; on a GPU its views are overwritten by those of the batch after it."""

    views: tuple[Tensor, ...]  # normalised images, (B, C, H, W) each, on the device
    targets: tuple[Target, ...]  # one for each transformed view
    indices: Tensor  # rows of the images, (B,) int64, on the CPU
    count: int  # samples of all processes

    @property
    def tensors(self) -> list[Tensor]:
        """All that a training step reads."""
        return [*self.views, *(part for target in self.targets for part in (target.values, target.parameters))]


@dataclass(frozen=True)
class ViewSpec:
    """How the views of an image are made; all views share one crop of the size (height, width).

    `normalise` turns images in [0, 1], (B, C, H, W), into network input.
    """

    roles: tuple[Role, ...]
    family: TransformFamily
    augment: Augment
    size: Size
    normalise: Callable[[Tensor], Tensor]
    seed: int


class TrainingLoader:
    """Yields the batches of a run from any step on; each process yields every `world`-th sample of a batch.

    Args:
        images: the training images; the batches are on their device.
        spec: how their views are made.
        batch_size: samples of a batch, over all processes.
        device: of the batches.
        rank: of this process.
        world: number of processes.
        capture: whether a GPU makes the views of full batches as one graph.
    """

    def __init__(
        self,
        images: Images,
        spec: ViewSpec,
        *,
        batch_size: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        capture: bool = False,
    ) -> None:
        self.images, self.spec, self.batch_size, self.device = images, spec, batch_size, device
        self.rank, self.world = rank, world
        self.bounds = batch_bounds(len(images), batch_size, world=world)
        self._captured = CapturedCalls[tuple[Tensor, ...]](device, enabled=capture)

    def read(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of the steps from `start` to `stop`, last excluded.

        Raises:
            AvtError: if an image does not decode or is smaller than the crop.
            RunFailedError: if a reader process ended.
        """
        augment, transformed = self.spec.augment, self.spec.roles.count("transformed")
        crop, epochs = CropSpec(self.spec.size, padding=augment.padding, flip=augment.flip), self._epochs(start, stop)
        for table, bounds in _ahead(epochs) if self.device.type == "cuda" else epochs:
            rows = [table.order[first:last][self.rank :: self.world] for first, last in bounds]
            positions = [range(first, last)[self.rank :: self.world] for first, last in bounds]
            # all batches that are left of the epoch at once: streamed images are read ahead, and a GPU is sent tables, not rows
            uniforms = (own for (own,) in _by_batch(table.uniforms, positions, torch.device("cpu")))
            pixels = self.images.read_batches(rows, crop, uniforms)
            drawn = _by_batch(table.transformed, positions, self.device)
            for (first, last), indices, images, own in zip(bounds, rows, pixels, drawn, strict=True):
                yield self._batch(indices, images, own[:transformed], own[transformed:], count=last - first)

    def _epochs(self, start: int, stop: int) -> Iterator[tuple[EpochTable, list[tuple[int, int]]]]:
        """Yield the table of each epoch, the first block that is read drawn, and the bounds of the batches that are read."""
        spec, transformed = self.spec, self.spec.roles.count("transformed")
        while start < stop:
            epoch, index = divmod(start, len(self.bounds))
            bounds = self.bounds[index : index + stop - start]
            table = sample_epoch_table(spec.seed, epoch, len(self.images), spec.family, spec.size, transformed=transformed)
            for draws in (table.uniforms, table.transformed):
                draws.read(torch.tensor([bounds[0][0]]))
            yield table, bounds
            start += len(bounds)

    def _batch(
        self, rows: Tensor, pixels: Tensor, parameters: tuple[Tensor, ...], values: tuple[Tensor, ...], *, count: int
    ) -> Batch:
        """Make the views and targets of cropped uint8 images, (B, C, H, W)."""
        spec, full = self.spec, count == self.batch_size
        make = partial(self._views, pixels, parameters)
        views = self._captured([pixels, *parameters], make) if full else make()
        pairs = zip(values, parameters, strict=True)
        return Batch(views, tuple(Target(v.float(), own, spec.family, spec.size) for v, own in pairs), rows, count)

    def _views(self, pixels: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images = to_float(pixels)
        transformed = (self.spec.family.apply(images, own) for own in parameters)
        views = [images if role == "original" else next(transformed) for role in self.spec.roles]
        return tuple(self.spec.normalise(view) for view in views)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items, each made in a thread while the one before is used: a GPU may need half a second for an epoch."""
    with ThreadPoolExecutor(1) as thread:
        due = thread.submit(next, items, None)
        while (item := due.result()) is not None:
            due = thread.submit(next, items, None)
            yield item


def _by_batch(draws: Draws, positions: Sequence[range], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Yield what is drawn for each batch, by its positions in the epoch, on the device, which gets a block of it at once."""
    for _, group in groupby(positions, lambda own: own.start // BLOCK):
        own = [torch.arange(p.start, p.stop, p.step) for p in group]
        columns, counts = draws.read(torch.cat(own)), [len(p) for p in own]
        for parts in zip(*(torch.split(upload(column, device), counts) for column in columns), strict=True):
            yield tuple(to_device(part, device) for part in parts)
