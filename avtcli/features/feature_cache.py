"""Features of a frozen encoder that are computed once and cached, in memory or on disk."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from avtcli.events import OnEvent, Progress
from avtcli.features.cache_storage import CPU, allocate
from avtcli.features.feature_reader import Feature, FeatureReader, ForwardedImages
from avtcli.runtime.devices import upload
from avtcli.runtime.processes import shared_rows

Stacks = Mapping[tuple[Feature, ...], Tensor]
"""Features of all images: for those of one shape a float32 tensor (n, features, *shape), channels last in memory."""


class CachedFeatures(FeatureReader):
    """Features that were computed once; their batches are sent to the device of the heads.

    `stacks` are those of the centre crops, `copies` those of augmented images, for training: each epoch takes the next one,
    cyclically.
    """

    eval_batch = 2000

    def __init__(self, stacks: Stacks, labels: Tensor, *, device: torch.device, copies: Sequence[Stacks] = ()) -> None:
        self.cached, self.copies, self.device = stacks, copies, device
        self.labels = labels.to(device)
        self.shapes = {name: tuple(tensor.shape[2:]) for names, tensor in stacks.items() for name in names}

    @property
    def features(self) -> dict[Feature, Tensor]:
        """Each feature of the centre crops, (n, *shape), without a copy."""
        pairs = ((names, tensor.unbind(1)) for names, tensor in self.cached.items())
        return {name: own for names, tensors in pairs for name, own in zip(names, tensors, strict=True)}

    def read_batches(self, batches: Sequence[Tensor], *, epoch_key: tuple[int, int] | None) -> Iterator[list[Tensor]]:
        """Pick rows; see `FeatureReader`."""
        stacks = self.copies[epoch_key[1] % len(self.copies)] if epoch_key and self.copies else self.cached
        last = [tensor.movedim(2, -1) for tensor in stacks.values()]  # contiguous: one copy an image
        order = upload(torch.cat([*batches]), last[0].device)  # at once
        for rows in torch.split(order, [len(batch) for batch in batches]):
            yield [x.index_select(0, rows.to(x.device)).movedim(-1, 2).to(self.device) for x in last]


def cache_bytes(reader: FeatureReader) -> int:
    """The size of the cached features of all images, in bytes."""
    return 4 * len(reader.labels) * sum(map(prod, reader.shapes.values()))


def extract(
    reader: ForwardedImages,
    *,
    separate: bool,
    epoch_key: tuple[int, int] | None = None,
    storage: torch.device | Path = CPU,
    task: str,
    on_event: OnEvent,
    group: ProcessGroup | None = None,
) -> list[Stacks]:
    """Read the features of all images in one pass.

    Args:
        reader: of the images.
        separate: whether to return one `Stacks` for each feature instead of one of all.
        epoch_key: (seed, epoch) of the augmentation; none for centre crops.
        storage: where to cache them; see `choose_storage`.
        task: name for the progress.
        on_event: receives the progress.
        group: of processes that share the images; each gets all features.
    """
    groups = [[(feature,)] for feature in reader.shapes] if separate else [reader.stacks]

    def allocate_stack(names: tuple[Feature, ...]) -> Tensor:
        channels, *cells = reader.shapes[names[0]]
        return allocate((len(reader.labels), len(names), *cells, channels), storage).movedim(-1, 2)

    cached = [{names: allocate_stack(names) for names in names_of_one} for names_of_one in groups]
    stored = [(names, stack) for stacks in cached for names, stack in stacks.items()]
    batches = list(torch.split(torch.arange(len(reader.labels)), reader.eval_batch))
    with shared_rows(group, [stack.movedim(2, -1) for _, stack in stored], batches) as own:  # contiguous
        first, end = (int(own[0][0]), int(own[-1][-1]) + 1) if own else (0, 0)
        read_own = reader.read_batches(own, epoch_key=epoch_key, first=first // reader.eval_batch)
        for rows, read in zip(own, read_own, strict=True):
            span = slice(int(rows[0]), int(rows[-1]) + 1)
            features = {name: x[:, i] for names, x in zip(reader.stacks, read, strict=True) for i, name in enumerate(names)}
            for names, stack in stored:
                for i, name in enumerate(names):
                    stack[span, i] = features[name]
            done = (span.stop - first) * len(reader.labels) // (end - first)  # the shares of all processes are alike
            on_event(Progress(task, done, len(reader.labels), "images"))
    return [*cached]
