"""Places205, from its two published lists."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtplugins.datasets._files import missing_data
from avtplugins.datasets._image_files import MEAN, STD, FileList, FileSplit, fingerprint

IMAGES: Final = "data/vision/torralba/deeplearning/images256"
LISTS: Final = "trainvalsplit_places205"
N_CLASSES: Final = 205
LAYOUT: Final = (
    f"the images below {IMAGES}, and {LISTS}/train_places205.csv and val_places205.csv, each line a path below that folder, a "
    "space and a label (avt does not download them)"
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


def _list(path: Path, folder: Path) -> FileList:
    files, missing, first = FileList(), 0, b""
    below = os.fsencode(folder) + b"/"
    for name, label in read_list(path):
        size = _size(below + name)
        if size is None:
            missing, first = missing + 1, first or name
        else:
            files.add(name, size, label)
    if missing:
        raise AvtError(
            f"{path} names {missing + len(files)} images, {missing} of them are not in {folder}, the first is "
            f"{os.fsdecode(first)}. Unpack the complete archive there."
        )
    return files


def _class_names(split: FileSplit) -> tuple[str, ...]:
    """Name each class after the folder of its first training image, or its index if it has none."""
    assert split.labels is not None
    names: dict[int, str] = {}
    for i, label in enumerate(split.labels.tolist()):
        if label not in names:
            names[label] = os.path.dirname(split.name(i))
    return tuple(names.get(label) or str(label) for label in range(N_CLASSES))


def places205(
    path: str | None = None,
    /,
    *,
    data_dir: Path,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> ImageData:
    """Places205: about 2.45 million + 20 500 images of 256 px in 205 classes, from its two published lists.

    Args:
        path: the folder with the images and the lists as published.
        data_dir: parent of the folder `places205`, without a path.
        mean: per channel, for normalisation (ImageNet's, on which the networks were trained).
        std: per channel, for normalisation (ImageNet's).
    """
    root = Path(path).expanduser() if path else data_dir / "places205"
    folder, lists = root / IMAGES, [root / LISTS / f"{part}_places205.csv" for part in ("train", "val")]
    absent = [str(place) for place, there in ((folder, folder.is_dir()), *((p, p.is_file()) for p in lists)) if not there]
    if absent:
        raise missing_data("places205", where=root, layout=LAYOUT, cause=f"there is no {absent[0]}")
    train, val = (_list(path, folder) for path in lists)
    train_split = FileSplit(folder, train)
    return ImageData(
        train=train_split,
        test=FileSplit(folder, val),
        channels=3,
        size=None,
        mean=mean,
        std=std,
        classes=_class_names(train_split),
        fingerprint=fingerprint([train, val]),
    )
