"""Data sets by name, whether they are those of a run, and the size of their images."""

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from avtcli import registry
from avtcli.config.components import Augment, Plugin
from avtcli.config.resolution import data_folder
from avtcli.contracts import ImageData, Size, Split
from avtcli.data.held_out import can_hold_out, partition, records_of
from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent, ignore
from avtcli.geometry.cropping import resized_size
from avtcli.storage.run_data import read_bad_images, read_listing

UNKNOWN: Final = "unknown"
"""The fingerprint of the data of an imported network."""
REASONS: Final = 6
"""Kinds of files left out that a notice names."""


def build_data(plugin: Plugin, data_dir: str | None, *, on_event: OnEvent = ignore) -> ImageData:
    """Open a data set; what it has to choose from the images it chooses from those that may be trained on.

    Raises:
        AvtError: if it is missing, incomplete or empty.
    """
    given = {"data_dir": data_folder(data_dir), "notify": lambda text: on_event(Notice(text))}
    data: ImageData = registry.build("dataset", plugin.name, plugin.options, **given)
    if not len(data.train):
        raise AvtError(f"The data set '{plugin.name}' has no training images.")
    if data.complete is None:
        return data
    return data.complete(partition(data).train if can_hold_out(data) else torch.arange(len(data.train)))


def describe_data(data: ImageData) -> list[str]:
    """Say how the files of a data set were understood, and which were left out."""
    notes = list(data.notes)
    if data.left_out:
        ordered = sorted(data.left_out.items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{count} {reason}" for reason, count in ordered[:REASONS]]
        parts += [f"{sum(count for _, count in ordered[REASONS:])} others"] if len(ordered) > REASONS else []
        notes.append(f"left out: {sum(data.left_out.values())} files ({', '.join(parts)})")
    return notes


def splits_of(data: ImageData) -> dict[str, Split]:
    """Return the splits by name: train, and test and unlabelled if there are such."""
    splits = {"train": data.train, "test": data.test, "unlabelled": data.unlabelled}
    return {part: split for part, split in splits.items() if split is not None}


def listings_of(data: ImageData) -> dict[str, bytes]:
    """Return the list of each split's images, for a run to keep; without splits that are no lists of files."""
    listings = {part: split.listing() for part, split in splits_of(data).items()}
    return {part: listing for part, listing in listings.items() if listing is not None}


def check_data(data: ImageData, *, run: Path, fingerprint: str | None, advice: str) -> ImageData:
    """Return a run's data set as it was when the run began, identified by the fingerprint that it stored, if any.

    Files that the run could not use (its bad_images.csv) may have changed or vanished: the images are those that the run
    listed, so that each keeps its number.

    Args:
        data: the data set as it is now.
        run: the run folder.
        fingerprint: of the run's data; none or `UNKNOWN` checks nothing.
        advice: what to do, for the message.

    Raises:
        AvtError: if other files are missing, were added or changed.
    """
    if fingerprint is None or fingerprint in (UNKNOWN, data.fingerprint):
        return data
    bad, splits, problems, differ = read_bad_images(run), splits_of(data), list[str](), False
    unexplained = f"the fingerprint was {fingerprint}, found {data.fingerprint}"
    for part in ("train", "test"):
        split, before = splits.get(part), read_listing(run, part)
        now = None if split is None else split.listing()
        if split is not None and before is not None and now is not None:
            excused = {os.fsencode(image.name) for image in bad if image.split == part}
            problems, differ = [*problems, *_differences(before, now, excused=excused)], differ or before != now
            splits[part] = split.with_listing(before)
        elif split is not None or before is not None:  # without both lists there is nothing to excuse
            problems.append(unexplained)
            break
    if problems or not differ:
        found = "; ".join(problems) or unexplained
        raise AvtError(f"The images are not those that {run} was trained on: {found}. {advice}")
    return replace(data, train=splits["train"], test=splits.get("test"), fingerprint=fingerprint)


def _differences(before: bytes, now: bytes, *, excused: Collection[bytes]) -> list[str]:
    """Describe how a list of images changed, apart from excused names."""
    old, new = set(records_of(before)), set()
    for record in records_of(now):  # not a second set of a million
        old.remove(record) if record in old else new.add(record)
    gone, come = ({record.partition(b"\0")[0] for record in records} for records in (old, new))
    kinds = {"missing": gone - come - set(excused), "added": come - gone, "changed": (gone & come) - set(excused)}
    return [f"{len(names)} {kind}, first {os.fsdecode(min(names))!r}" for kind, names in kinds.items() if names]


def with_sizes(data: ImageData, augment: Augment, *, natural: registry.InputSize, measured: bool = False) -> Augment:
    """Complete resize and crop where the images differ in size and one of them is not given.

    The crop is the natural side of the backbone, and the images are resized to 8/7 of it, as 256 is to 224; neither is more
    than the shorter side of half of the images, so that most are not enlarged to more than a crop that is given, or a step
    of the backbone.
    What is `measured` is not resized where only a crop is given, as published protocols mean it.
    """
    if data.size is not None or (augment.crop is not None and (measured or augment.resize is not None)):
        return augment
    side, step = natural
    most = augment.resize or data.typical_side or 2 * side
    crop = augment.crop or max(min(side, most) // step, 1) * step
    resize = augment.resize or max(crop, min((augment.crop or side) * 8 // 7, most))
    return augment.model_copy(update={"resize": resize, "crop": crop})


def image_size(data: ImageData, augment: Augment) -> Size:
    """Return the (height, width) of network input.

    Raises:
        AvtError: if the images differ in size and no crop says otherwise, or are smaller than the crop.
    """
    size = None if data.size is None else resized_size(data.size, augment.resize)
    if augment.crop is None:
        if size is None:
            raise AvtError("The images differ in size: give `-o augment.resize=256 -o augment.crop=224`.")
        return size
    shorter = augment.resize if size is None else min(size)
    if shorter is not None and shorter < augment.crop:  # evaluation crops without padding
        found = f"{augment.resize} px on their shorter side" if size is None else f"{size[0]}x{size[1]} px"
        raise AvtError(f"The images are {found}, too small for augment.crop = {augment.crop}.")
    return (augment.crop, augment.crop)
