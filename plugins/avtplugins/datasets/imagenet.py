"""ImageNet, one folder per class."""

import os
from pathlib import Path
from typing import Final

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtplugins.datasets._files import missing_data
from avtplugins.datasets._image_files import MEAN, STD, FileList, FileSplit, fingerprint, list_images

LAYOUT: Final = (
    "train/CLASS/*.JPEG and val/CLASS/*.JPEG, one folder per class (ImageNet needs an account, avt does not download it)"
)


def _classes(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise missing_data("imagenet", where=folder.parent, layout=LAYOUT, cause=f"{folder}: {error.strerror}") from error
    if not names:
        raise AvtError(f"{folder} has no class folders. Expected {LAYOUT}: sort the images into one folder per class.")
    return names


def _check_same(train: list[str], val: list[str], root: Path) -> None:
    lacking, more = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if lacking or more:
        parts = [f"{len(lacking)} of train are not in val (first {lacking[0]})"] if lacking else []
        parts += [f"{len(more)} of val are not in train (first {more[0]})"] if more else []
        raise AvtError(f"The class folders in {root} differ: {', '.join(parts)}. Expected the same names in train and in val.")


def _list(folder: Path, classes: list[str]) -> FileList:
    files, empty = FileList(), []
    for label, name in enumerate(classes):
        images = list_images(folder / name)
        if not images:
            empty.append(name)
        below = os.fsencode(name) + b"/"
        for file, size in images:
            files.add(below + file, size, label)
    if empty:
        raise AvtError(f"{len(empty)} class folders in {folder} hold no images, the first is {empty[0]}. Fill or remove them.")
    return files


def imagenet(
    path: str | None = None,
    /,
    *,
    data_dir: Path,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> ImageData:
    """ImageNet: about 1.28 million + 50 000 images in 1 000 classes, or any images laid out so; labels are the sorted folders.

    Args:
        path: the folder with train and val.
        data_dir: parent of the folder `imagenet`, without a path.
        mean: per channel, for normalisation (as in the release).
        std: per channel, for normalisation (as in the release).
    """
    root = Path(path).expanduser() if path else data_dir / "imagenet"
    classes = _classes(root / "train")
    _check_same(classes, _classes(root / "val"), root)
    train, val = _list(root / "train", classes), _list(root / "val", classes)
    return ImageData(
        train=FileSplit(root / "train", train),
        test=FileSplit(root / "val", val),
        channels=3,
        size=None,
        mean=mean,
        std=std,
        classes=tuple(classes),
        fingerprint=fingerprint([train, val]),
    )
