"""Any images in any folder, without labels."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtplugins.datasets._files import RGB
from avtplugins.datasets._image_files import MEAN, STD, SUFFIXES, FileSplit, ListedFile, file_data, list_folder, write_listing

EXPECTED: Final = f"images at any depth, {', '.join(suffix.decode() for suffix in SUFFIXES)}, hidden ones left out"


def _walk(folder: bytes, below: bytes, walked: set[tuple[int, int]]) -> Iterator[ListedFile]:
    """List the image files in a folder and below, sorted by name.

    Links to folders are followed; a folder is walked once, so that a link to a parent ends there.
    """
    found = os.stat(folder)
    if (found.st_dev, found.st_ino) in walked:
        return
    walked.add((found.st_dev, found.st_ino))
    files, folders = list_folder(folder)
    for name, size in sorted([*files, *((name + b"/", 0) for name in folders)]):  # as the paths sort
        if name.endswith(b"/"):
            yield from _walk(os.path.join(folder, name[:-1]), below + name, walked)
        else:
            yield below + name, size, -1


def folder(path: Path, /, *, mean: RGB = MEAN, std: RGB = STD) -> ImageData:
    """Any images: every image file in a folder and the folders below, sorted by name, without labels; 5 % are held out.

    Args:
        path: the folder.
        mean: per channel, for normalisation (ImageNet's).
        std: per channel, for normalisation (ImageNet's).
    """
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise AvtError(f"The folder {path} {found}. Expected a folder with {EXPECTED}: give `--dataset folder:DIR`.")
    images = FileSplit(path, write_listing(_walk(os.fsencode(path), b"", set())), labelled=False)
    if not len(images):
        raise AvtError(f"The folder {path} has no images. Expected {EXPECTED}: give another `--dataset folder:DIR`.")
    return file_data(images, None, classes=None, mean=mean, std=std)
