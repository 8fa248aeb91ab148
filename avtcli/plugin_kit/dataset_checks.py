"""Conformance checks of data sets: images, labels, names, and equality when opened again."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from avtcli.config.components import Plugin
from avtcli.contracts import ImageData, Split
from avtcli.data.datasets import build_data, splits_of
from avtcli.data.held_out import records_of
from avtcli.plugin_kit.checking import Trial, checks_of, described, expect, expect_tensor
from avtcli.seeding import subset

IMAGES_READ: Final = 16  # of each split


@dataclass(frozen=True)
class DatasetSubject:
    """A data set under test, and a function that opens it again."""

    data: ImageData
    open_again: Callable[[], ImageData]


def trial(spec: str) -> Trial:
    """Open a data set for its checks."""

    def open_it() -> ImageData:
        return build_data(Plugin(name=spec), None)

    return CHECKS, DatasetSubject(open_it(), open_it)


def _some(split: Split) -> list[int]:
    """The first, the last, and some between."""
    return sorted({0, len(split) - 1, *subset(len(split), IMAGES_READ, "conformance", "rows").tolist()})


def its_splits_have_images(subject: DatasetSubject) -> str:
    """Each has one or more."""
    for part, split in splits_of(subject.data).items():
        expect(len(split) > 0, f"{part} is empty; a missing split is None")
    return ", ".join(f"{part} {len(split)}" for part, split in splits_of(subject.data).items())


def images_are_uint8_of_the_stated_channels_and_size(subject: DatasetSubject) -> str:
    """`read` gives (C, H, W), the same each time, and equal to `images` where that is given."""
    data = subject.data
    for part, split in splits_of(data).items():
        for i in _some(split):
            image, what = split.read(i), f"{part} {split.name(i)}"
            fine = image.dtype == torch.uint8 and image.ndim == 3 and len(image) == data.channels
            expect(fine, f"{what} is {described(image)}, expected ({data.channels}, H, W) uint8")
            size = tuple(image.shape[1:])
            expect(data.size in (None, size), f"{what} is {size} px, the data set states {data.size}")
            expect(torch.equal(image, split.read(i)), f"{what} was read twice and differed")
            if split.images is not None:
                expect(torch.equal(image, split.images[i]), f"{what} differs between read({i}) and images[{i}]")
        expect(split.images is None or len(split.images) == len(split), f"{part}: images and len differ in length")
    return f"{data.channels} channels, " + ("any size" if data.size is None else f"{data.size[0]}x{data.size[1]} px")


def labels_are_int64_and_in_range(subject: DatasetSubject) -> str:
    """(n,) from 0, below the number of class names if any."""
    classes = subject.data.classes
    for part, split in splits_of(subject.data).items():
        if split.labels is None:
            continue
        expect_tensor(f"the tensor of {part} labels", split.labels, (len(split),), torch.int64)
        low, high = int(split.labels.min()), int(split.labels.max())
        expect(low >= 0, f"the labels of {part} begin at {low}, expected 0 or more")
        fine = classes is None or high < len(classes)
        expect(fine, f"the labels of {part} reach {high} with {len(classes or ())} class names")
    return "no labels" if subject.data.train.labels is None else f"{len(classes or ()) or 'unnamed'} classes"


def image_names_are_unique(subject: DatasetSubject) -> str:
    """Messages and embeddings identify images by name."""
    for part, split in splits_of(subject.data).items():
        indices = _some(split)
        names = {split.name(i) for i in indices}
        expect(all(names) and len(names) == len(indices), f"{len(indices)} images of {part} have {len(names)} names")
    return subject.data.train.name(0)


def a_listing_gives_the_same_images(subject: DatasetSubject) -> str:
    """A split that lists its files is opened again from the list, which a run keeps."""
    files = 0
    for part, split in splits_of(subject.data).items():
        listing = split.listing()
        if listing is None:
            continue
        again, files = split.with_listing(listing), files + len(split)
        expect(len(again) == len(split), f"{part} has {len(split)} images, and {len(again)} with its own listing")
        expect(again.listing() == listing, f"{part} with its own listing gives another one")
        names = [os.fsdecode(record.partition(b"\0")[0]) for record in records_of(listing)]
        expect(len(names) == len(split), f"{part} has {len(split)} images and lists {len(names)}")
        for i in _some(split):
            problem = f"image {i} of {part} is {split.name(i)}, listed as {names[i]}, and then {again.name(i)}"
            expect(split.name(i) == names[i] == again.name(i), problem)
    return f"{files} files"


def mean_and_deviation_are_stated_for_each_channel(subject: DatasetSubject) -> None:
    """Of images in [0, 1], for normalisation."""
    data = subject.data
    for what, figures in (("mean", data.mean), ("std", data.std)):
        expect(len(figures) == data.channels, f"{what} has {len(figures)} values for {data.channels} channels")
    expect(all(0 <= m <= 1 for m in data.mean), f"mean is {data.mean}, expected values in [0, 1]")
    expect(all(0 < s <= 1 for s in data.std), f"std is {data.std}, expected values above 0, up to 1")


def it_is_the_same_when_opened_again(subject: DatasetSubject) -> str:
    """Fingerprint, order, labels and images."""
    data, again = subject.data, subject.open_again()
    first, second = data.fingerprint, again.fingerprint
    problem = f"opened twice, the fingerprints are {first!r} and {second!r}, expected one that is not empty"
    expect(bool(first) and first == second, problem)
    for (part, split), other in zip(splits_of(data).items(), splits_of(again).values(), strict=True):
        expect(len(split) == len(other), f"opened twice, {part} has {len(split)} and {len(other)} images")
        a, b = split.labels, other.labels
        same = a is b if a is None or b is None else torch.equal(a, b)
        expect(same, f"opened twice, the labels of {part} differ")
        for i in _some(split):
            expect(split.name(i) == other.name(i), f"opened twice, image {i} of {part} is {split.name(i)} and {other.name(i)}")
            expect(torch.equal(split.read(i), other.read(i)), f"opened twice, {part} {split.name(i)} differs")
    return f"fingerprint {data.fingerprint[:12]}"


CHECKS: Final = checks_of(DatasetSubject, globals())
