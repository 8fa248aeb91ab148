"""Any images in any folder, without labels."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtplugins.datasets._image_files import MEAN, STD, SUFFIXES, FileList, FileSplit, fingerprint

EXPECTED: Final = f"images at any depth, {', '.join(suffix.decode() for suffix in SUFFIXES)}, hidden ones left out"


def _entries(folder: bytes) -> list[tuple[bytes, os.DirEntry[bytes]]]:
    """Entries of a folder, sorted as the paths below it sort: a folder's name ends in a slash."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(b".") and os.path.exists(entry.path)]
            return sorted((entry.name + b"/" if entry.is_dir() else entry.name, entry) for entry in seen)
    except OSError as error:
        raise AvtError(
            f"The folder {os.fsdecode(folder)} cannot be read: {error.strerror}. Check its permissions and its disk."
        ) from error


def _walk(folder: bytes, below: bytes, walked: set[tuple[int, int]]) -> Iterator[tuple[bytes, int]]:
    """The image files in a folder and below, sorted by name: (name, size in bytes).

    Links to folders are followed; a folder is walked once, so that a link to a parent ends there.
    """
    found = os.stat(folder)
    if (found.st_dev, found.st_ino) in walked:
        return
    walked.add((found.st_dev, found.st_ino))
    for name, entry in _entries(folder):
        if name.endswith(b"/"):
            yield from _walk(entry.path, below + name, walked)
        elif name.lower().endswith(SUFFIXES) and entry.is_file():
            yield below + name, entry.stat().st_size


def folder(
    path: str,
    /,
    *,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> ImageData:
    """Any images: every image file in a folder and the folders below, sorted by name, without labels and without a test part.

    Args:
        path: the folder.
        mean: per channel, for normalisation (ImageNet's).
        std: per channel, for normalisation (ImageNet's).
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise AvtError(f"The folder {root} {found}. Expected a folder with {EXPECTED}: give `--dataset folder:DIR`.")
    files = FileList()
    for name, size in _walk(os.fsencode(root), b"", set()):
        files.add(name, size, -1)
    if not len(files):
        raise AvtError(f"The folder {root} has no images. Expected {EXPECTED}: give another `--dataset folder:DIR`.")
    images = FileSplit(root, files)
    images.labels = None
    return ImageData(
        train=images,
        test=None,
        channels=3,
        size=None,
        mean=mean,
        std=std,
        classes=None,
        fingerprint=fingerprint([files]),
    )
