"""Features of frozen encoders that are read once and kept, in memory or on disk."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from avtcli.events import OnEvent, Progress
from avtcli.features.cache_storage import allocate
from avtcli.features.feature_reader import Batch, Feature, FeatureReader, ForwardedImages
from avtcli.probing.linear_heads import ChannelMoments


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


class CachedFeatures(FeatureReader):
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


def stored_bytes(reader: FeatureReader, *, moments: bool) -> int:
    """What the features of all images take at most, in bytes, with or without their moments."""
    shapes = list(reader.shapes.values())
    return 4 * len(reader.labels) * (sum(map(prod, shapes)) + moments * _moments_of(shapes))


def _moments_of(shapes: Sequence[tuple[int, ...]]) -> int:
    """How many moments of an image are worth keeping: none where each channel is a single number."""
    return 2 * sum(channels for channels, *_ in shapes) if any(prod(cells) > 1 for _, *cells in shapes) else 0


class FeatureBuffer:
    """Stacks of a reader's features that are being filled, in memory or in a folder's files."""

    def __init__(
        self, reader: FeatureReader, names: Sequence[tuple[Feature, ...]], *, moments: bool, store: Path | None
    ) -> None:
        count, self.tensors = len(reader.labels), dict[tuple[Feature, ...], Tensor]()
        for mine in names:
            channels, *cells = reader.shapes[mine[0]]
            # channels last in memory, as heads read them fastest
            self.tensors[mine] = allocate((count, len(mine), *cells, channels), store).movedim(-1, 2)
        numbers = moments * _moments_of([reader.shapes[name] for mine in names for name in mine])
        self.moments = allocate((count, numbers), store) if numbers else None
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
        origin = torch.stack([theirs * (rows.stop - rows.start) for rows, theirs in self.origins]).sum(0) / len(self.moments)
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
        store: a folder whose disk keeps them, mapped into memory; none keeps them in memory. See `choose_storage`.
        task: its name in the progress.
        on_event: told how far it is.

    Returns:
        All features together, or each for itself, on the CPU.
    """
    groups = [[(name,)] for names in reader.stacks for name in names] if apart else [reader.stacks]
    kept = [FeatureBuffer(reader, names, moments=moments, store=store) for names in groups]
    batches = list(torch.split(torch.arange(len(reader.labels)), reader.plain_batch))
    for rows, features in zip(batches, reader.read_features(batches, drawn=drawn), strict=True):
        mine = slice(int(rows[0]), int(rows[-1]) + 1)
        for filling in kept:
            filling.put(mine, features)
        on_event(Progress(task, mine.stop, len(reader.labels), "images"))
    return [filling.finish() for filling in kept]
