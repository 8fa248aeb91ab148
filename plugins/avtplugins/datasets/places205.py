"""Places205, from its two published lists."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtplugins.datasets._encoded import encoded_data
from avtplugins.datasets._files import RGB
from avtplugins.datasets._image_files import MEAN, STD, FileSplit, ListedFile, find_root, found_root, write_listing

IMAGES: Final = "data/vision/torralba/deeplearning/images256"
LISTS: Final = tuple(f"trainvalsplit_places205/{part}_places205.csv" for part in ("train", "val"))
N_CLASSES: Final = 205
LAYOUT: Final = (
    f"the images below {IMAGES}, and {LISTS[0]} and val_places205.csv, each line a path below that folder, a space and a label "
    "(avt does not download them)"
)


def read_list(path: Path) -> Iterator[tuple[bytes, int]]:
    """Read one list, line by line: (path below the images' folder, label).

    Raises:
        AvtError: if it cannot be read, or for the first line of another form.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                name, _, label = line.rstrip(b"\r\n").rpartition(b" ")
                if not name or not label.isdigit() or int(label) >= N_CLASSES:
                    expected = f"a path, a space and a label from 0 to {N_CLASSES - 1}"
                elif name.startswith(b"/") or b".." in name.split(b"/") or b"\0" in name:
                    expected = "a path below the images' folder"
                else:
                    yield name, int(label)
                    continue
                raise AvtError(f"{path}, line {number}: expected {expected}, found {line[:80]!r}.")
    except OSError as error:
        raise AvtError(f"{path} cannot be read: {error.strerror}. Copy it again.") from error


def _size(path: bytes) -> int | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _files(path: Path, folder: Path) -> Iterator[ListedFile]:
    found, missing, first, parent = 0, 0, b"", os.fsencode(folder)
    for name, label in read_list(path):
        size = _size(os.path.join(parent, name))
        if size is None:
            missing, first = missing + 1, first or name
        else:
            found += 1
            yield name, size, label
    if missing:
        raise AvtError(
            f"{missing} of the {found + missing} images of {path} are not in {folder}, the first is {os.fsdecode(first)}. "
            "Unpack the complete archive there."
        )


def _class_names(split: FileSplit) -> tuple[str, ...]:
    """Name each class after the folder of its first training image, or its index if it has none."""
    assert split.labels is not None
    names: dict[int, str] = {}
    for i, label in enumerate(split.labels.tolist()):
        if label not in names:
            names[label] = os.path.dirname(split.name(i))
    return tuple(names.get(label) or str(label) for label in range(N_CLASSES))


def places205_folder(data_dir: Path) -> Path | None:
    """Find the folder of the data set in the data folder."""
    return found_root("places205", data_dir, needs=(IMAGES, *LISTS))


def places205(path: Path | None = None, /, *, data_dir: Path, mean: RGB = MEAN, std: RGB = STD) -> ImageData:
    """Places205: about 2.45 million + 20 500 images of 256 px in 205 classes, from its two published lists.

    Args:
        path: the folder with the images and the lists as published.
        data_dir: parent of the folder `places205`, without a path.
        mean: per channel, for normalisation (ImageNet's, on which the networks were trained).
        std: per channel, for normalisation (ImageNet's).
    """
    root = find_root("places205", path, data_dir, needs=(IMAGES, *LISTS), layout=LAYOUT)
    images = root / IMAGES
    train, val = (FileSplit(images, write_listing(_files(root / list_, images))) for list_ in LISTS)
    return encoded_data(train, val, classes=_class_names(train), mean=mean, std=std)
