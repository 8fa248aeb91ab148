"""What a data set holds: every image is read once, at its full resolution, and counted."""

import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor

from avtcli import registry
from avtcli.config.components import Augment, Plugin
from avtcli.config.resolution import resolve
from avtcli.config.value_text import counted
from avtcli.contracts import Size, Split
from avtcli.data.bad_images import BadImages
from avtcli.data.datasets import build_data, describe_data, image_size, splits_of, with_sizes
from avtcli.data.held_out import can_hold_out, partition
from avtcli.data.images import CropSpec, crop_image, resize
from avtcli.data.streaming import StreamedImages
from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent, Progress
from avtcli.runtime.devices import Context
from avtcli.runtime.reader_workers import choose_workers
from avtcli.seeding import subset

BATCH: Final = 32
EXAMPLES: Final = 20
"""Groups of equal images that are named."""
_FACTS: Final = struct.Struct("<qii16s40s")  # index, height, width, digest, format and mode


@dataclass(frozen=True)
class SplitCheck:
    """One split: `images` of which `checked` were read; sizes are (height, width), those between by area.

    Attributes:
        modes: images by format and mode of their files; empty for images that are no files.
        classes: the number of classes with images; none without labels.
        class_images: the least, the median and the most images of a class that has any.
        unlabelled: images without a label where others have one.
        bad: names of images that cannot be used, and why.
    """

    split: str
    images: int
    checked: int
    smallest: Size | None
    median: Size | None
    largest: Size | None
    modes: dict[str, int]
    classes: int | None
    class_images: tuple[int, int, int] | None
    unlabelled: int
    bad: list[tuple[str, str]]


@dataclass(frozen=True)
class DataCheck:
    """A data set as a run would read it.

    Attributes:
        channels: of the images that a network sees; `mean` and `std` are per channel.
        held_out: training images that are held out, where there is no test split.
        duplicates: images whose pixels are those of another one that was read before.
        duplicate_groups: names of equal images, of at most 20 groups; each is SPLIT/NAME.
        images_per_second: decoded at full resolution, resized to `resize` and cropped to `crop` px, on this machine with
            `workers` processes; training decodes large JPEGs to a smaller size, which is faster.
        epoch_seconds: reading the training images once at this speed.
    """

    dataset: str
    fingerprint: str
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: list[str]
    left_out: dict[str, int]
    splits: list[SplitCheck]
    held_out: int
    duplicates: int
    duplicate_groups: list[list[str]]
    resize: int | None
    crop: int | None
    workers: int
    images_per_second: float
    epoch_seconds: float


class _Inspected(Split):
    """Reads each image at its full resolution, and gives what there is to say of it in place of its pixels."""

    images: Tensor | None = None
    labels: Tensor | None = None

    def __init__(self, split: Split, augment: Augment, size: Size) -> None:
        self.split, self.augment, self.size = split, augment, size

    def __len__(self) -> int:
        return len(self.split)

    def name(self, i: int) -> str:
        return self.split.name(i)

    def read(self, i: int) -> Tensor:
        image, name = self.split.read(i), self.split.name(i)
        crop_image(resize(image, self.augment.resize, name=name), CropSpec(self.size), None, name=name)
        digest = blake2b(repr(tuple(image.shape)).encode(), digest_size=16)
        digest.update(image.contiguous().numpy().data)
        kind = (self.split.describe(i) or "").encode()[:40]
        facts = _FACTS.pack(i, image.shape[1], image.shape[2], digest.digest(), kind)
        return torch.frombuffer(bytearray(facts), dtype=torch.uint8).reshape(1, 1, -1)


def check_data_set(
    dataset: Plugin, *, data_dir: str | None, augment: Augment, sample: int | None, context: Context
) -> DataCheck:
    """Read the images of a data set, or a random sample of each split, and count what is there.

    Images that cannot be used are listed, not an error.

    Raises:
        AvtError: if the data set cannot be opened, or the images are smaller than the crop that was given.
    """
    on_event = context.on_event
    data = build_data(dataset, data_dir, on_event=on_event)
    for note in describe_data(data):
        on_event(Notice(note))
    backbone = resolve({"dataset": dataset.model_dump()}, recipe=None).backbone.name  # that of a run on these images
    augment = with_sizes(data, augment, natural=registry.input_size(backbone))
    size = image_size(data, augment)
    used = choose_workers(context.workers, _Inspected(data.train, augment, size), batch_bytes=BATCH * _FACTS.size)
    groups, splits, began = dict[bytes, list[str]](), list[SplitCheck](), time.monotonic()
    for part, split in splits_of(data).items():
        inspected = _Inspected(split, augment, size)
        splits.append(_check_split(inspected, part, sample, used, groups, on_event=on_event))
    seconds, checked = time.monotonic() - began, sum(split.checked for split in splits)
    equal = [names for names in groups.values() if len(names) > 1]
    rate = checked / max(seconds, 1e-9)
    training = len(data.unlabelled or data.train)
    held = len(partition(data).held_out) if data.test is None and data.unlabelled is None and can_hold_out(data) else 0
    return DataCheck(
        dataset=dataset.name,
        fingerprint=data.fingerprint,
        channels=data.channels,
        mean=data.mean,
        std=data.std,
        notes=list(data.notes),
        left_out=dict(data.left_out),
        splits=splits,
        held_out=held,
        duplicates=sum(len(names) - 1 for names in equal),
        duplicate_groups=equal[:EXAMPLES],
        resize=augment.resize,
        crop=augment.crop,
        workers=used,
        images_per_second=round(rate, 1),
        epoch_seconds=round((training - held) / rate, 1),
    )


def _check_split(
    inspected: _Inspected, part: str, sample: int | None, workers: int, groups: dict[bytes, list[str]], *, on_event: OnEvent
) -> SplitCheck:
    """Read a split, and add its images' digests to the names of each digest."""
    split = inspected.split
    indices = subset(len(split), sample, "data check", part)
    bad = BadImages(inspected, part, used=len(indices), max_fraction=1.0)
    sizes, modes = list[Size](), Counter[str]()
    for index, size, digest, kind in _facts(inspected, indices, bad, workers, f"checking {part}", on_event):
        sizes.append(size)
        modes.update([kind] if kind else [])
        groups.setdefault(digest, []).append(f"{part}/{split.name(index)}")
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    labels = None if split.labels is None else split.labels[split.labels >= 0]
    counts = [] if labels is None else sorted(n for n in labels.bincount().tolist() if n)
    return SplitCheck(
        split=part,
        images=len(split),
        checked=len(indices),
        smallest=ordered[0] if ordered else None,
        median=ordered[len(ordered) // 2] if ordered else None,
        largest=ordered[-1] if ordered else None,
        modes=dict(modes.most_common()),
        classes=None if labels is None else len(counts),
        class_images=(counts[0], int(median(counts)), counts[-1]) if counts else None,
        unlabelled=0 if labels is None else len(split) - len(labels),
        bad=[(image.name, image.reason) for image in bad.take_new()],
    )


def _facts(
    inspected: _Inspected, indices: Tensor, bad: BadImages, workers: int, task: str, on_event: OnEvent
) -> Iterator[tuple[int, Size, bytes, str]]:
    """Yield index, size, digest and kind of each image that can be used; a bad one is replaced by one that comes twice."""
    images = StreamedImages(inspected, indices, device=torch.device("cpu"), workers=workers, bad=bad)
    batches, seen, done = list(torch.split(torch.arange(len(indices)), BATCH)), set[int](), 0
    try:
        for batch in images.read_batches(batches, CropSpec((1, _FACTS.size))):
            for row in batch:
                index, height, width, digest, kind = _FACTS.unpack(row.numpy().tobytes())
                if index not in seen:
                    seen.add(index)
                    yield index, (height, width), digest, kind.rstrip(b"\0").decode()
            done += len(batch)
            on_event(Progress(task, done, len(indices), "images"))
    except AvtError:
        if len(bad.reasons) < len(indices):
            raise


def facts_of(check: DataCheck) -> dict[str, Any]:
    """What a check found as labels and values, for a terminal."""
    facts: dict[str, Any] = {"data": check.dataset}
    for split in check.splits:
        of = "" if split.checked == split.images else f", {split.checked} checked"
        facts[split.split] = f"{counted(split.images, 'image')}{of}"
        if split.smallest and split.median and split.largest:
            sides = [f"{width}x{height}" for height, width in (split.smallest, split.median, split.largest)]
            facts[f"{split.split} sizes"] = sides[0] if sides[0] == sides[2] else f"{sides[0]} to {sides[2]}, median {sides[1]}"
        if split.modes:
            facts[f"{split.split} files"] = ", ".join(f"{count} {kind}" for kind, count in split.modes.items())
        if split.class_images is not None:
            low, middle, high = split.class_images
            each = f"{counted(low, 'image')} each" if low == high else f"{low} to {high} images, median {middle}"
            without = f"; {counted(split.unlabelled, 'image')} without a label" if split.unlabelled else ""
            facts[f"{split.split} classes"] = f"{split.classes}, {each}{without}"
        if split.bad:
            facts[f"{split.split} bad"] = counted(len(split.bad), "image")
    done = (("resized", check.resize), ("cropped", check.crop))
    sizes = ", ".join(f"{verb} to {side}" if side else f"not {verb}" for verb, side in done)
    speed = f"{check.images_per_second:.5g} images/s, {sizes}, by {check.workers or 1} process{'es' * (check.workers > 1)}"
    return {
        **facts,
        "held out": f"{check.held_out} of the training images" if check.held_out else None,
        "channels": f"{check.channels}, mean {_figures(check.mean)}, std {_figures(check.std)}",
        "duplicates": counted(check.duplicates, "image") if check.duplicates else "none",
        "speed": speed,
        "epoch": f"at most {check.epoch_seconds:.3g} s to read the training images once",
    }


def _figures(figures: tuple[float, ...]) -> str:
    return " ".join(f"{figure:.3g}" for figure in figures)
