"""Features of a frozen encoder that are computed once and cached, in memory or on disk."""

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from avtcli.events import OnEvent, Progress
from avtcli.features.cache_storage import CPU, allocate
from avtcli.features.feature_reader import FeatureReader, Features, ForwardedImages
from avtcli.runtime.devices import upload
from avtcli.runtime.processes import shared_rows


class CachedFeatures(FeatureReader):
    """Features that were computed once; their batches are sent to the device of the heads.

    `features` are those of the centre crops, `copies` those of augmented images, for training: each epoch takes the next one,
    cyclically.
    """

    eval_batch = 2000

    def __init__(self, features: Features, labels: Tensor, *, device: torch.device, copies: Sequence[Features] = ()) -> None:
        self.features, self.copies, self.device = features, copies, device
        self.labels = labels.to(device)
        self.shapes = {feature: tuple(own.shape[1:]) for feature, own in features.items()}

    def read_batches(self, batches: Sequence[Tensor], *, epoch_key: tuple[int, int] | None) -> Iterator[Features]:
        """Pick rows; see `FeatureReader`."""
        features = self.copies[epoch_key[1] % len(self.copies)] if epoch_key and self.copies else self.features
        last = {feature: own.movedim(1, -1) for feature, own in features.items()}  # contiguous: one copy an image
        (stored,) = {own.device for own in last.values()}
        order = upload(torch.cat([*batches]), stored)  # at once
        for rows in torch.split(order, [len(batch) for batch in batches]):
            yield {feature: own.index_select(0, rows).movedim(-1, 1).to(self.device) for feature, own in last.items()}


def cache_bytes(reader: FeatureReader) -> int:
    """The size of the cached features of all images, in bytes."""
    return 4 * len(reader.labels) * sum(map(prod, reader.shapes.values()))


def extract(
    reader: ForwardedImages,
    *,
    epoch_key: tuple[int, int] | None = None,
    storage: torch.device | Path = CPU,
    task: str,
    on_event: OnEvent,
    group: ProcessGroup | None = None,
) -> Features:
    """Read the features of all images in one pass.

    Args:
        reader: of the images.
        epoch_key: (seed, epoch) of the augmentation; none for centre crops.
        storage: where to cache them; see `choose_storage`.
        task: name for the progress.
        on_event: receives the progress.
        group: of processes that share the images; each gets all features.
    """
    count = len(reader.labels)
    cells_last = {f: allocate((count, *cells, channels), storage) for f, (channels, *cells) in reader.shapes.items()}
    cached = {feature: own.movedim(-1, 1) for feature, own in cells_last.items()}
    batches = list(torch.split(torch.arange(count), reader.eval_batch))
    with shared_rows(group, [*cells_last.values()], batches) as own:
        first, end = (int(own[0][0]), int(own[-1][-1]) + 1) if own else (0, 0)
        read_own = reader.read_batches(own, epoch_key=epoch_key, first=first // reader.eval_batch)
        for rows, features in zip(own, read_own, strict=True):
            start, stop = int(rows[0]), int(rows[-1]) + 1
            for feature, values in features.items():
                cached[feature][start:stop] = values
            done = (stop - first) * count // (end - first)  # the shares of all processes are alike
            on_event(Progress(task, done, count, "images"))
    return cached
