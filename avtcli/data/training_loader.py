"""Training batches: the views of each image with their targets, on the device, as a function of the step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from avtcli.config.components import Augment
from avtcli.contracts import Role, Size, Target, TransformFamily
from avtcli.data.epoch_table import EpochTable, batch_bounds, sample_epoch_table
from avtcli.data.images import CropSpec, Images
from avtcli.geometry.cropping import to_float
from avtcli.runtime.devices import to_device


@dataclass(frozen=True)
class Batch:
    """One training batch of this process."""

    views: tuple[Tensor, ...]  # normalised images, (B, C, H, W) each, on the device
    targets: tuple[Target, ...]  # one for each transformed view
    indices: Tensor  # rows of the images, (B,) int64, on the CPU
    count: int  # samples of all processes


@dataclass(frozen=True)
class ViewSpec:
    """How the views of an image are made; all views share one crop of the size (height, width)."""

    roles: tuple[Role, ...]
    family: TransformFamily
    augment: Augment
    size: Size
    seed: int


class TrainingLoader:
    """Yields the batches of a run from any step on; each process yields every `world`-th sample of a batch.

    Args:
        images: the training images; the batches are on their device.
        spec: how their views are made.
        normalise: from images in [0, 1], (B, C, H, W), to network input.
        batch_size: samples of a batch, over all processes.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self, images: Images, spec: ViewSpec, normalise: Callable[[Tensor], Tensor], *, batch_size: int, rank: int, world: int
    ) -> None:
        self.images, self.spec, self.normalise = images, spec, normalise
        self.rank, self.world, self.bounds = rank, world, batch_bounds(len(images), batch_size, world=world)

    def read(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of the steps from `start` to `stop`, last excluded.

        Raises:
            AvtError: if an image does not decode or is smaller than the crop.
            RunFailedError: if a reader process ended.
        """
        spec, augment, transformed = self.spec, self.spec.augment, self.spec.roles.count("transformed")
        crop = CropSpec(spec.size, padding=augment.padding, flip=augment.flip)
        while start < stop:
            epoch, index = divmod(start, len(self.bounds))
            table = sample_epoch_table(spec.seed, epoch, len(self.images), spec.family, spec.size, transformed=transformed)
            bounds = self.bounds[index : index + stop - start]
            rows = [table.order[first:last][self.rank :: self.world] for first, last in bounds]
            # all batches that are left of the epoch at once, so that streamed images are read ahead
            pixels = self.images.read_batches(rows, crop, table.uniforms)
            for (first, last), indices, images in zip(bounds, rows, pixels, strict=True):
                yield self._batch(images, indices, table, last - first)
            start += len(bounds)

    def _batch(self, pixels: Tensor, indices: Tensor, table: EpochTable, count: int) -> Batch:
        """Make the views of cropped uint8 images, (B, C, H, W)."""
        spec, images, device = self.spec, to_float(pixels), pixels.device
        parameters = [to_device(own[indices], device) for own in table.parameters]
        transformed = (spec.family.apply(images, own) for own in parameters)
        views = [images if role == "original" else next(transformed) for role in spec.roles]
        targets = (
            Target(to_device(values[indices], device).float(), own, spec.family, spec.size)
            for values, own in zip(table.targets, parameters, strict=True)
        )
        return Batch(tuple(self.normalise(view) for view in views), tuple(targets), indices, count)
