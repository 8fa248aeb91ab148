"""Conformance checks of data sets: images, labels, names, and equality when opened again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch

from avtcli import registry
from avtcli.contracts import ImageData, Split
from avtcli.data.datasets import data_folder
from avtcli.plugin_kit.checking import Trial, described, expect
from avtcli.seeding import subset

IMAGES_READ: Final = 16
"""Images of each split that are read."""


@dataclass(frozen=True)
class DatasetSubject:
    """A data set under test, and a function that opens it again."""

    data: ImageData
    open_again: Callable[[], ImageData]


def trial(spec: str) -> Trial:
    """Open a data set for its checks.

    Raises:
        AvtError: if it is missing.
    """

    def open_it() -> ImageData:
        data: ImageData = registry.build("dataset", spec, {}, data_dir=data_folder(None))
        return data

    return CHECKS, DatasetSubject(open_it(), open_it)


def _splits(data: ImageData) -> Iterator[tuple[str, Split]]:
    yield "train", data.train
    if data.test is not None:
        yield "test", data.test


def _some(split: Split) -> list[int]:
    """The first, the last, and some between."""
    return sorted({0, len(split) - 1, *subset(len(split), IMAGES_READ, "conformance", "rows").tolist()})


def its_splits_have_images(subject: DatasetSubject) -> str:
    for part, split in _splits(subject.data):
        expect(len(split) > 0, f"{part} is empty; a missing split is None")
    return ", ".join(f"{part} {len(split)}" for part, split in _splits(subject.data))


def images_are_uint8_of_the_stated_channels_and_size(subject: DatasetSubject) -> str:
    data = subject.data
    for part, split in _splits(data):
        for i in _some(split):
            image = split.read(i)
            shape, what = tuple(image.shape), f"{part} {split.name(i)}"
            expect(
                image.dtype == torch.uint8 and len(shape) == 3 and shape[0] == data.channels,
                f"{what} is {described(image)}, expected ({data.channels}, H, W) uint8",
            )
            expect(data.size in (None, shape[1:]), f"{what} is {shape[1:]} px, the data set states {data.size}")
            expect(torch.equal(image, split.read(i)), f"{what} was read twice and differed")
            if split.images is not None:
                expect(torch.equal(image, split.images[i]), f"{what} differs between read({i}) and images[{i}]")
        expect(split.images is None or len(split.images) == len(split), f"{part}: images and len differ in length")
    return f"{data.channels} channels, " + ("any size" if data.size is None else f"{data.size[0]}x{data.size[1]} px")


def labels_are_int64_and_in_range(subject: DatasetSubject) -> str:
    for part, split in _splits(subject.data):
        labels = split.labels
        if labels is None:
            continue
        expect(
            labels.dtype == torch.int64 and labels.shape == (len(split),),
            f"the labels of {part} are {described(labels)}, expected ({len(split)},) int64",
        )
        low, high = int(labels.min()), int(labels.max())
        expect(low >= 0, f"the labels of {part} begin at {low}, expected 0 or more")
        classes = subject.data.classes
        expect(
            classes is None or high < len(classes), f"the labels of {part} reach {high} with {len(classes or ())} class names"
        )
    return "no labels" if subject.data.train.labels is None else f"{len(subject.data.classes or ()) or 'unnamed'} classes"


def image_names_are_unique(subject: DatasetSubject) -> str:
    for part, split in _splits(subject.data):
        indices = _some(split)
        names = {split.name(i) for i in indices}
        expect(all(names) and len(names) == len(indices), f"{len(indices)} images of {part} have {len(names)} names")
    return subject.data.train.name(0)


def mean_and_deviation_are_stated_for_each_channel(subject: DatasetSubject) -> str:
    data = subject.data
    for what, figures in (("mean", data.mean), ("std", data.std)):
        expect(len(figures) == data.channels, f"{what} has {len(figures)} values for {data.channels} channels")
    expect(all(0 <= m <= 1 for m in data.mean), f"mean is {data.mean}, expected values in [0, 1]")
    expect(all(0 < s <= 1 for s in data.std), f"std is {data.std}, expected values above 0, up to 1")
    return ""


def it_is_the_same_when_opened_again(subject: DatasetSubject) -> str:
    data, again = subject.data, subject.open_again()
    expect(
        bool(data.fingerprint) and data.fingerprint == again.fingerprint,
        f"opened twice, the fingerprints are {data.fingerprint!r} and {again.fingerprint!r}, expected one that is not empty",
    )
    for (part, split), (_, other) in zip(_splits(data), _splits(again), strict=True):
        expect(len(split) == len(other), f"opened twice, {part} has {len(split)} and {len(other)} images")
        a, b = split.labels, other.labels
        same = a is b if a is None or b is None else torch.equal(a, b)
        expect(same, f"opened twice, the labels of {part} differ")
        for i in _some(split):
            expect(split.name(i) == other.name(i), f"opened twice, image {i} of {part} is {split.name(i)} and {other.name(i)}")
            expect(torch.equal(split.read(i), other.read(i)), f"opened twice, {part} {split.name(i)} differs")
    return f"fingerprint {data.fingerprint[:12]}"


CHECKS: Final = (
    its_splits_have_images,
    images_are_uint8_of_the_stated_channels_and_size,
    labels_are_int64_and_in_range,
    image_names_are_unique,
    mean_and_deviation_are_stated_for_each_channel,
    it_is_the_same_when_opened_again,
)
