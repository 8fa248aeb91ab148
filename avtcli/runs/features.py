"""Features of frozen encoders by image: kept after one reading, or read anew each epoch from images cropped and flipped."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from avtcli.config import Augment
from avtcli.contracts import Size
from avtcli.core.encoder import Encoder
from avtcli.core.heads import pool_features
from avtcli.core.keyed import keyed_generator
from avtcli.errors import AvtError
from avtcli.runs.events import OnEvent, Progress
from avtcli.runs.feature_store import make_room
from avtcli.runs.images import Images, Window
from avtcli.runs.loaders import PLAIN_BATCH, draw_uniforms


@dataclass(frozen=True)
class Feature:
    """What to read of an image: a tap, reduced."""

    layer: str
    pool: str
    pool_size: int


class FeatureReader(ABC):
    """Features of labelled images, by row."""

    labels: Tensor
    """(n,) int64, on the device of the features."""
    shapes: Mapping[Feature, tuple[int, ...]]
    """The shape of each feature of one image, (C, H, W) or (C,)."""
    plain_batch: int
    """How many images to ask for at once where it does not matter."""

    @property
    def stacks(self) -> list[tuple[Feature, ...]]:
        """The features, those of one shape together."""
        shapes = dict.fromkeys(self.shapes.values())
        return [tuple(f for f, mine in self.shapes.items() if mine == shape) for shape in shapes]

    @abstractmethod
    def read_stacks(self, batches: Sequence[Tensor], *, drawn: tuple[int, int] | None) -> Iterator[list[Tensor]]:
        """Read batches in their order.

        Args:
            batches: rows, (B,) int64 each.
            drawn: (seed, epoch) of the crops, flips and samples of the code, for training; none for measuring: the middle
                of each image, and the same samples at every reading of the same batches.

        Yields:
            Each of `stacks` of the batch, (features, B, *shape), float32, on the device.
        """


Stacks = Mapping[tuple[Feature, ...], Tensor]
"""Features of n images, those of one shape together: (features, n, *shape), float32, channels last in memory."""


class KeptFeatures(FeatureReader):
    """Features that were read once, on the device of the heads.

    Args:
        stacks: of the images as they are; those that are not on the device are sent a batch at a time.
        labels: (n,) int64.
        device: where the heads are.
        copies: the same of images cropped and flipped, for training: an epoch takes the next one, in turn.
    """

    plain_batch = 2000

    def __init__(self, stacks: Stacks, labels: Tensor, *, device: torch.device, copies: Sequence[Stacks] = ()) -> None:
        self.kept, self.copies, self.device = stacks, copies, device
        self.labels = labels.to(device)
        self.shapes = {feature: tuple(tensor.shape[2:]) for stack, tensor in stacks.items() for feature in stack}

    @property
    def features(self) -> dict[Feature, Tensor]:
        """Each feature of the images as they are, (n, *shape)."""
        return {feature: mine for stack, tensor in self.kept.items() for feature, mine in zip(stack, tensor, strict=True)}

    def read_stacks(self, batches: Sequence[Tensor], *, drawn: tuple[int, int] | None) -> Iterator[list[Tensor]]:
        """Pick rows; see `FeatureReader`."""
        stacks = self.copies[drawn[1] % len(self.copies)] if drawn and self.copies else self.kept
        for rows in batches:
            yield [_rows_of(stack, rows).to(self.device) for stack in stacks.values()]


def _rows_of(stack: Tensor, rows: Tensor) -> Tensor:
    """Rows of each feature of a stack, in its layout: in one call, and on a CPU three times as fast as by indexing."""
    last = stack.movedim(2, -1)
    groups, count = last.shape[:2]
    places = torch.arange(groups, device=last.device)[:, None] * count + rows.to(last.device)
    picked = last.view(groups * count, -1).index_select(0, places.flatten())
    return picked.view(groups, len(rows), *last.shape[2:]).movedim(-1, 2)


class ForwardedImages(FeatureReader):
    """Features that are computed when they are needed: one forward of the encoder a batch gives all of them.

    Args:
        encoder: on the images' device; while it is in training mode, the features carry gradients.
        images: the images.
        labels: theirs, (n,) int64, on the same device.
        wanted: what to read.
        part: the part of the data set that the images are, for the key of the samples.
        augment: padding and flip of the training images; none reads their middle whatever is drawn. Resizing is the images'
            affair.
        size: (height, width) of the crop.
        samples: how many samples of the code its mean is taken over; 0 takes the mean of the code.
        seed: of the samples for measuring.

    Raises:
        AvtError: if the encoder cannot take images of the size.
    """

    plain_batch = PLAIN_BATCH

    def __init__(
        self,
        encoder: Encoder,
        images: Images,
        labels: Tensor,
        wanted: Sequence[Feature],
        *,
        part: str,
        augment: Augment | None,
        size: Size,
        samples: int,
        seed: int,
    ) -> None:
        self.encoder, self.images, self.labels, self.wanted = encoder, images, labels, wanted
        self.part, self.augment, self.size, self.seed = part, augment, size, seed
        self.samples = samples if encoder.log_var is not None else 0
        self.layers = list(dict.fromkeys(feature.layer for feature in wanted))
        code = encoder.backbone.code_tap
        taps = tap_shapes(encoder, [*self.layers, code], size)
        self.code_shape = taps[code]
        self.shapes = {f: tuple(_reduced(torch.empty(1, *taps[f.layer]), f).shape[1:]) for f in wanted}

    def read_stacks(self, batches: Sequence[Tensor], *, drawn: tuple[int, int] | None) -> Iterator[list[Tensor]]:
        """Forward images; see `FeatureReader`."""
        key: tuple[int | str, ...] = (*(drawn or (self.seed,)), "samples", self.part)
        window, uniforms = Window(self.size), None
        if drawn is not None and self.augment is not None:
            window = Window(self.size, padding=self.augment.padding, flip=self.augment.flip)
            uniforms = draw_uniforms(*drawn, len(self.images))
        wanted = self.stacks
        for index, batch in enumerate(self.images.read_batches(batches, window, uniforms)):
            with torch.set_grad_enabled(self.encoder.training):
                taps = self._taps(self.encoder.normalise(batch), (*key, index))
                stacks = [[_reduced(taps[f.layer], f).float().movedim(1, -1) for f in stack] for stack in wanted]
            yield [torch.stack(stack).movedim(-1, 2) for stack in stacks]

    def _taps(self, x: Tensor, key: tuple[int | str, ...]) -> dict[str, Tensor]:
        """The taps of a batch; with samples, the code tap is the mean of so many, and the taps after it see the first."""
        encoder, code = self.encoder, self.encoder.backbone.code_tap
        if not self.samples:
            return encoder.features(x, self.layers)
        log_var = f"{code}.log_var"
        generator = keyed_generator(*key, device=x.device)
        draws = [torch.randn(len(x), *self.code_shape, generator=generator, device=x.device) for _ in range(self.samples)]
        taps = encoder.features(x, list(dict.fromkeys([*self.layers, code, log_var])), draws[0])
        # the layers before the code draw nothing, so that samples differ in their noise alone
        noise = torch.stack(draws).mean(0)
        return {**taps, code: taps[code] + encoder.noise_scale * (0.5 * taps[log_var]).exp() * noise}


def tap_shapes(encoder: Encoder, layers: Sequence[str], size: Size) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's feature of one image, (C, H, W) or (C,) for a vector; the encoder is in eval mode.

    Raises:
        AvtError: if the encoder cannot take images of the size.
    """
    x = torch.zeros(1, len(encoder.pixel_mean), *size, device=encoder.pixel_mean.device)
    try:
        with torch.no_grad():
            taps = encoder.features(x, list(dict.fromkeys(layers)))
    except (RuntimeError, AssertionError) as error:  # torch and timm name layers and shapes, which is of no use here
        raise AvtError(
            f"The backbone does not take images of {size[0]}x{size[1]} px. Give it images of the size that it was trained on: "
            "`-o augment.resize` and `-o augment.crop` make them so."
        ) from error
    return {name: tuple(tap.shape[1:]) for name, tap in taps.items()}


def _reduced(tap: Tensor, feature: Feature) -> Tensor:
    return pool_features(tap, feature.pool, feature.pool_size)


def stored_bytes(reader: FeatureReader) -> int:
    """What the features of all images take, in bytes."""
    return 4 * len(reader.labels) * sum(prod(shape) for shape in reader.shapes.values())


def moved(kept: Stacks, device: torch.device) -> Stacks:
    """The same features on a device."""
    return {stack: tensor.to(device) for stack, tensor in kept.items()}


def extract(
    reader: FeatureReader, *, drawn: tuple[int, int] | None = None, store: Path | None = None, task: str, on_event: OnEvent
) -> Stacks:
    """Read the features of all images in one pass.

    Args:
        reader: where to read.
        drawn: as `FeatureReader.read_stacks` takes it.
        store: a folder whose disk keeps them, mapped into memory; none keeps them in memory. See `choose_store`.
        task: its name in the progress.
        on_event: told how far it is.

    Returns:
        The features of all images, on the CPU.
    """
    count = len(reader.labels)
    out = {}
    for stack in reader.stacks:
        channels, *cells = reader.shapes[stack[0]]
        # channels last in memory, as heads read them fastest
        out[stack] = make_room((len(stack), count, *cells, channels), store).movedim(-1, 2)
    batches = list(torch.split(torch.arange(count), reader.plain_batch))
    for rows, stacks in zip(batches, reader.read_stacks(batches, drawn=drawn), strict=True):
        for kept, values in zip(out.values(), stacks, strict=True):
            kept[:, rows[0] : rows[-1] + 1] = values.cpu()
        on_event(Progress(task, int(rows[-1]) + 1, count, "images"))
    return out
