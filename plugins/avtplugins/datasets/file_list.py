"""Images that a list names, with labels and splits where it states them."""

import csv
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Final

import numpy as np

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtplugins.datasets._decoding import Decoding
from avtplugins.datasets._image_files import FileSplit, ListedFile, write_listing
from avtplugins.datasets._own_images import WHITE, Channels, Colour, Figures, own_images, sorted_classes

COLUMNS: Final = ("path", "label", "split")
SPLITS: Final = {"": "train", "train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
EXPECTED: Final = "a text file with a path in each line, or a .csv file with the columns path, label and split"


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number and the columns of each row."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if path.suffix.lower() != ".csv":
            yield from ((number, {"path": line.rstrip("\r\n")}) for number, line in enumerate(file, start=1) if line.strip())
            return
        reader, header = csv.reader(file, strict=True), None
        for row in reader:
            cells = [cell.strip() for cell in row]
            if header is None:
                header = [cell.lower() for cell in cells]
                if "path" in header:
                    continue
                header = list(COLUMNS)
            if any(cells):
                columns = dict(zip(header, cells, strict=False))
                label = columns.get("label", "").encode(errors="surrogateescape").decode(errors="backslashreplace")
                yield reader.line_num, {**columns, "label": label}


def _listed(path: Path, index: Mapping[str, int]) -> Iterator[tuple[str, ListedFile]]:
    """Yield the split and the file of each row, the label as the index states it.

    Raises:
        AvtError: for a row that is not right, or files that are missing, with the first.
    """
    folder, missing, first, count = os.path.join(path.parent, ""), 0, "", 0
    for number, row in _lines(path):
        given, split = row.get("path", ""), SPLITS.get(row.get("split", "").lower())
        if any("\0" in text for text in row.values()):
            raise AvtError(f"{path}, line {number}: found bytes that are no text. Save the list as UTF-8.")
        if not given or split is None:
            what = "a path" if split is not None else f"a split of {', '.join(filter(None, SPLITS))}, or none"
            raise AvtError(f"{path}, line {number}: expected {what}, found {list(row.values())}.")
        count += 1
        name = os.path.normpath(os.path.expanduser(given)).removeprefix(folder)  # so that moving all of it changes nothing
        try:
            found = os.stat(folder + name if name[0] != "/" else name)
        except OSError:
            found = None
        if found is not None and stat.S_ISREG(found.st_mode):
            yield split, (os.fsencode(name), found.st_size, index.get(row.get("label", ""), -1))
        else:
            missing, first = missing + 1, first or given
    if missing:
        raise AvtError(
            f"{path} names {count} images, {missing} are no files, the first is {first}. Paths are relative to the list or "
            f"absolute; a first line with names of columns has {', '.join(COLUMNS)}, separated by commas."
        )


def _refuse_repeats(path: Path, keys: bytes, splits: Iterable[FileSplit]) -> None:
    """Refuse an image that is there twice: it could be in training and in test."""
    hashes = np.frombuffer(keys, np.uint64)
    if len(np.unique(hashes)) < len(hashes):
        counts = Counter(split.name(i) for split in splits for i in range(len(split)))
        raise AvtError(f"The list {path} names {counts.most_common(1)[0][0]} twice. Name each image once.")


def files(
    path: Path,
    /,
    *,
    channels: Channels = "auto",
    orient: bool = True,
    background: Colour = WHITE,
    mean: Figures = None,
    std: Figures = None,
) -> ImageData:
    """The images that a list names: a path in each line, or a .csv with the columns path, label and split.

    Paths are absolute, or relative to the list. The columns of a .csv are named by its first line, or come in this order. A
    label is any text, the classes are sorted, numbers by value; an image without one is for pretraining only. A split is
    train, the default, test or val; without a test split val is it, and without both 5 % of the images are held out.

    Args:
        path: the list.
        channels: 1 for grey, 3 for RGB; auto takes 1 where all sampled images are grey.
        orient: apply the EXIF orientation of photographs.
        background: RGB colour, 0 to 255, under transparent pixels.
        mean: per channel, for normalisation; left out, that of a sample of the images.
        std: per channel, for normalisation; left out, that of a sample of the images.
    """
    listings, keys = dict[str, bytearray](), bytearray()  # no Python object stays for each of a million rows
    try:
        classes = sorted_classes(row.get("label", "") for _, row in _lines(path))
        index = {label: i for i, label in enumerate(classes)}
        for part, file in _listed(path, index):
            listings.setdefault(part, bytearray()).extend(write_listing([file]))
            keys += blake2b(file[0], digest_size=8).digest()
    except (OSError, csv.Error) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise AvtError(f"The list {path} cannot be read: {cause}. Expected {EXPECTED}.") from error
    splits = {part: FileSplit(path.parent, bytes(listing), labelled=bool(classes)) for part, listing in listings.items()}
    _refuse_repeats(path, bytes(keys), splits.values())
    if "train" not in splits:
        raise AvtError(f"The list {path} names no training images. Expected {EXPECTED}.")
    held = next((part for part in ("test", "val") if part in splits), None)
    left_out = {f"of the split {part}": len(split) for part, split in splits.items() if part not in ("train", held)}
    notes = [f"labels: {len(classes)} classes" if classes else "labels: none"] + ([f"splits: train and {held}"] if held else [])
    facts = {"classes": classes or None, "notes": tuple(notes), "left_out": left_out}
    how = Decoding(orient=orient, background=background)
    return own_images(splits["train"], splits.get(held or ""), how, channels, mean=mean, std=std, **facts)
