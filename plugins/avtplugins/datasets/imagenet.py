"""ImageNet, one folder per class."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtplugins.datasets._files import RGB
from avtplugins.datasets._image_files import (
    MEAN,
    STD,
    FileSplit,
    ListedFile,
    file_data,
    find_root,
    found_root,
    list_folder,
    write_listing,
)

LAYOUT: Final = (
    "train/CLASS/*.JPEG and val/CLASS/*.JPEG, one folder per class (ImageNet needs an account, avt does not download it)"
)


def _classes(folder: Path) -> list[str]:
    names = sorted(os.fsdecode(name) for name in list_folder(os.fsencode(folder))[1])
    if not names:
        raise AvtError(f"{folder} has no class folders. Expected {LAYOUT}: sort the images into one folder per class.")
    return names


def _check_same(train: list[str], val: list[str], root: Path) -> None:
    lacking, more = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if lacking or more:
        parts = [f"{len(lacking)} of train are not in val (first {lacking[0]})"] if lacking else []
        parts += [f"{len(more)} of val are not in train (first {more[0]})"] if more else []
        raise AvtError(f"The class folders in {root} differ: {', '.join(parts)}. Expected the same names in train and in val.")


def _files(folder: Path, classes: list[str]) -> Iterator[ListedFile]:
    empty = []
    for label, name in enumerate(classes):
        images, _ = list_folder(os.fsencode(folder / name))
        if not images:
            empty.append(name)
        for file, size in images:
            yield os.path.join(os.fsencode(name), file), size, label
    if empty:
        raise AvtError(f"{len(empty)} class folders in {folder} hold no images, the first is {empty[0]}. Fill or remove them.")


def imagenet_folder(data_dir: Path) -> Path | None:
    """Find the folder of the data set in the data folder."""
    return found_root("imagenet", data_dir, needs=("train", "val"))


def imagenet(path: Path | None = None, /, *, data_dir: Path, mean: RGB = MEAN, std: RGB = STD) -> ImageData:
    """ImageNet: about 1.28 million + 50 000 images in 1 000 classes, or any images laid out so; labels are the sorted folders.

    Args:
        path: the folder with train and val.
        data_dir: parent of the folder `imagenet`, without a path.
        mean: per channel, for normalisation (as in the release).
        std: per channel, for normalisation (as in the release).
    """
    root = find_root("imagenet", path, data_dir, needs=("train", "val"), layout=LAYOUT)
    classes = _classes(root / "train")
    _check_same(classes, _classes(root / "val"), root)
    train, val = (FileSplit(folder, write_listing(_files(folder, classes))) for folder in (root / "train", root / "val"))
    return file_data(train, val, classes=tuple(classes), mean=mean, std=std)
