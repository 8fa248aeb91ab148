"""Images that a list names, with labels and splits where it states them."""

import csv
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtplugins.datasets._decoding import Decoding
from avtplugins.datasets._image_files import FileSplit, ListedFile, write_listing
from avtplugins.datasets._own_images import WHITE, Channels, Colour, Figures, own_images

COLUMNS: Final = ("path", "label", "split")
SPLITS: Final = {"": "train", "train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
EXPECTED: Final = "a text file with a path in each line, or a .csv file with the columns path, label and split"


@dataclass
class _Rows:
    """The rows of a list: each image's (name, size) by split, its label, and what is wrong."""

    images: dict[str, list[tuple[bytes, int, str]]] = field(default_factory=dict)
    missing: int = 0
    first: str = ""


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
                yield reader.line_num, dict(zip(header, cells, strict=False))


def _read(path: Path) -> _Rows:
    folder, rows, seen = path.parent, _Rows(), set[bytes]()
    for number, row in _lines(path):
        given, split = row.get("path", ""), SPLITS.get(row.get("split", "").lower())
        if not given or "\0" in given or split is None:
            what = "a path" if split is not None else f"a split of {', '.join(filter(None, SPLITS))}, or none"
            raise AvtError(f"{path}, line {number}: expected {what}, found {list(row.values())}.")
        name = _name(given, folder)
        key = blake2b(name, digest_size=8).digest()
        if key in seen:
            raise AvtError(f"{path}, line {number}: {given} is there twice. Name each image once.")
        seen.add(key)
        try:
            found = os.stat(os.path.join(os.fsencode(folder), name))
        except OSError:
            found = None
        if found is None or not stat.S_ISREG(found.st_mode):
            rows.missing, rows.first = rows.missing + 1, rows.first or given
            continue
        rows.images.setdefault(split, []).append((name, found.st_size, row.get("label", "")))
    return rows


def _name(given: str, folder: Path) -> bytes:
    """A path relative to the list's folder where it lies below it, so that moving both changes nothing."""
    path = os.path.expanduser(given)
    inside = os.path.isabs(path) and Path(path).is_relative_to(folder)
    return os.fsencode(os.path.relpath(path, folder) if inside else os.path.normpath(path))


def _order(label: str) -> tuple[bool, int, str]:
    """Numbers by their value, before names."""
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)


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
    try:
        rows = _read(path)
    except (OSError, csv.Error) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise AvtError(f"The list {path} cannot be read: {cause}. Expected {EXPECTED}.") from error
    found = rows.images
    if rows.missing:
        count = rows.missing + sum(map(len, found.values()))
        raise AvtError(
            f"{path} names {count} images, {rows.missing} of them are no files, the first is {rows.first}. Paths are absolute "
            "or relative to the list."
        )
    if "train" not in found:
        raise AvtError(f"The list {path} names no training images. Expected {EXPECTED}.")
    classes = tuple(sorted({label for images in found.values() for _, _, label in images if label}, key=_order))
    index = {label: i for i, label in enumerate(classes)}

    def split(part: str) -> FileSplit:
        listed: Iterator[ListedFile] = ((name, size, index.get(label, -1)) for name, size, label in found.pop(part))
        return FileSplit(path.parent, write_listing(listed), labelled=bool(classes))

    train = split("train")
    held = next((part for part in ("test", "val") if part in found), None)
    test = None if held is None else split(held)
    left_out = Counter({f"of the split {part}": len(images) for part, images in found.items()})
    notes = [f"labels: {len(classes)} classes" if classes else "labels: none"] + ([f"splits: train and {held}"] if held else [])
    facts = {"classes": classes or None, "notes": tuple(notes), "left_out": left_out}
    how = Decoding(orient=orient, background=background)
    return own_images(train, test, how, channels, mean=mean, std=std, **facts)
