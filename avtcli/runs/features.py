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
from avtcli.core.linear_heads import ChannelMoments, Statistics
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


@dataclass(frozen=True)
class Batch:
    """Features of a few images, those of one shape together, in the order of a reader's `stacks`.

    Attributes:
        stacks: each (B, features, *shape), float32.
        statistics: of the batch's channels; none where they were not kept.
    """

    stacks: list[Tensor]
    statistics: Statistics | None = None


@dataclass(frozen=True)
class Stacks:
    """Features of all images, those of one shape together.

    Attributes:
        tensors: each (n, features, *shape), float32; an image's features lie together, the channels last in memory.
        moments: of all their channels; none where they are not kept.
    """

    tensors: Mapping[tuple[Feature, ...], Tensor]
    moments: ChannelMoments | None = None

    @property
    def nbytes(self) -> int:
        """What they take, in bytes."""
        return sum(t.nbytes for t in self.tensors.values()) + (self.moments.of_images.nbytes if self.moments else 0)

    def to(self, device: torch.device) -> "Stacks":
        """The same on a device."""
        tensors = {names: tensor.to(device) for names, tensor in self.tensors.items()}
        moments = self.moments and ChannelMoments(self.moments.origin.to(device), self.moments.of_images.to(device))
        return Stacks(tensors, moments)

    def batch(self, rows: Tensor, device: torch.device) -> Batch:
        """Some of the images, (B,) int64, on a device: on a CPU one copy an image, three times as fast as by indexing."""
        last = (tensor.movedim(2, -1) for tensor in self.tensors.values())
        stacks = [tensor.index_select(0, rows.to(tensor.device)).movedim(-1, 2).to(device) for tensor in last]
        if self.moments is None:
            return Batch(stacks)
        mean, var = self.moments.statistics(rows.to(self.moments.origin.device))
        return Batch(stacks, (mean.to(device), var.to(device)))


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
    def read_batches(self, batches: Sequence[Tensor], *, drawn: tuple[int, int] | None) -> Iterator[Batch]:
        """Read batches in their order.

        Args:
            batches: rows, (B,) int64 each.
            drawn: (seed, epoch) of the crops, flips and samples of the code, for training; none for measuring: the middle
                of each image, and the same samples at every reading of the same batches.

        Yields:
            Each batch, on the device.
        """


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
        self.shapes = {name: tuple(tensor.shape[2:]) for names, tensor in stacks.tensors.items() for name in names}

    @property
    def features(self) -> dict[Feature, Tensor]:
        """Each feature of the images as they are, (n, *shape)."""
        pairs = ((names, tensor.unbind(1)) for names, tensor in self.kept.tensors.items())
        return {name: mine for names, tensors in pairs for name, mine in zip(names, tensors, strict=True)}

    def read_batches(self, batches: Sequence[Tensor], *, drawn: tuple[int, int] | None) -> Iterator[Batch]:
        """Pick rows; see `FeatureReader`."""
        stacks = self.copies[drawn[1] % len(self.copies)] if drawn and self.copies else self.kept
        for rows in batches:
            yield stacks.batch(rows, self.device)


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

    def read_batches(self, batches: Sequence[Tensor], *, drawn: tuple[int, int] | None) -> Iterator[Batch]:
        """Forward images; see `FeatureReader`."""
        for found in self.read_features(batches, drawn=drawn):
            parts = ([found[name].movedim(1, -1) for name in names] for names in self.stacks)
            yield Batch([torch.stack(part, 1).movedim(-1, 2) for part in parts])

    def read_features(self, batches: Sequence[Tensor], *, drawn: tuple[int, int] | None) -> Iterator[dict[Feature, Tensor]]:
        """As `read_batches`, each feature for itself, (B, *shape)."""
        key: tuple[int | str, ...] = (*(drawn or (self.seed,)), "samples", self.part)
        window, uniforms = Window(self.size), None
        if drawn is not None and self.augment is not None:
            window = Window(self.size, padding=self.augment.padding, flip=self.augment.flip)
            uniforms = draw_uniforms(*drawn, len(self.images))
        for index, batch in enumerate(self.images.read_batches(batches, window, uniforms)):
            with torch.set_grad_enabled(self.encoder.training):
                taps = self._taps(self.encoder.normalise(batch), (*key, index))
                found = {feature: _reduced(taps[feature.layer], feature).float() for feature in self.wanted}
            yield found

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


def stored_bytes(reader: FeatureReader, *, moments: bool) -> int:
    """What the features of all images take at most, in bytes, with or without their moments."""
    shapes = list(reader.shapes.values())
    return 4 * len(reader.labels) * (sum(map(prod, shapes)) + moments * _moments_of(shapes))


def _moments_of(shapes: Sequence[tuple[int, ...]]) -> int:
    """How many moments of an image are worth keeping: none where each channel is a single number."""
    return 2 * sum(channels for channels, *_ in shapes) if any(prod(cells) > 1 for _, *cells in shapes) else 0


class _Filling:
    """Stacks of a reader's features that are being filled, in memory or in a folder's files."""

    def __init__(
        self, reader: FeatureReader, names: Sequence[tuple[Feature, ...]], *, moments: bool, store: Path | None
    ) -> None:
        count, self.tensors = len(reader.labels), dict[tuple[Feature, ...], Tensor]()
        for mine in names:
            channels, *cells = reader.shapes[mine[0]]
            # channels last in memory, as heads read them fastest
            self.tensors[mine] = make_room((count, len(mine), *cells, channels), store).movedim(-1, 2)
        numbers = moments * _moments_of([reader.shapes[name] for mine in names for name in mine])
        self.moments = make_room((count, numbers), store) if numbers else None
        self.origins: list[tuple[slice, Tensor]] = []  # what each batch's moments are seen from

    def put(self, rows: slice, features: Mapping[Feature, Tensor]) -> None:
        """Put in what was read of some images."""
        for names, tensor in self.tensors.items():
            for place, name in enumerate(names):
                tensor[rows, place] = features[name].cpu()
        if self.moments is not None:
            found = ChannelMoments.of([tensor[rows] for tensor in self.tensors.values()])
            self.moments[rows] = found.of_images
            self.origins.append((rows, found.origin))

    def finish(self) -> Stacks:
        """The stacks, all moments seen from one origin: the mean of all images, where no class lies far from it."""
        if self.moments is None:
            return Stacks(self.tensors)
        total = sum(origin * (rows.stop - rows.start) for rows, origin in self.origins)
        assert isinstance(total, Tensor)
        origin = total / len(self.moments)
        for rows, theirs in self.origins:
            self.moments[rows] = ChannelMoments(theirs, self.moments[rows]).seen_from(origin).of_images
        return Stacks(self.tensors, ChannelMoments(origin, self.moments))


def extract(
    reader: ForwardedImages,
    *,
    apart: bool,
    moments: bool,
    drawn: tuple[int, int] | None = None,
    store: Path | None = None,
    task: str,
    on_event: OnEvent,
) -> list[Stacks]:
    """Read the features of all images in one pass.

    Args:
        reader: where to read.
        apart: whether each feature is kept for itself.
        moments: whether moments are kept too, of maps.
        drawn: as `read_features` takes it.
        store: a folder whose disk keeps them, mapped into memory; none keeps them in memory. See `choose_store`.
        task: its name in the progress.
        on_event: told how far it is.

    Returns:
        All features together, or each for itself, on the CPU.
    """
    groups = [[(name,)] for names in reader.stacks for name in names] if apart else [reader.stacks]
    kept = [_Filling(reader, names, moments=moments, store=store) for names in groups]
    batches = list(torch.split(torch.arange(len(reader.labels)), reader.plain_batch))
    for rows, features in zip(batches, reader.read_features(batches, drawn=drawn), strict=True):
        mine = slice(int(rows[0]), int(rows[-1]) + 1)
        for filling in kept:
            filling.put(mine, features)
        on_event(Progress(task, mine.stop, len(reader.labels), "images"))
    return [filling.finish() for filling in kept]
