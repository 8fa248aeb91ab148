"""Data sets of image files: listing, and splits that read one file at a time."""

import contextlib
import hashlib
import os
import re
import stat
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import torch

from avtcli.errors import AvtError
from avtplugins.datasets._decoding import AS_PUBLISHED, SUFFIXES, Decoding
from avtplugins.datasets._encoded import MAX_BYTES, EncodedSplit
from avtplugins.datasets._files import missing_data

# of ImageNet's images in [0, 1], as in the release
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)

_LISTED = re.compile(rb"[^\0]+\0([0-9]+) (-?[0-9]+)\n")

ListedFile = tuple[bytes, int, int]
"""Name below the folder of the images, size in bytes, and label."""


def find_root(name: str, path: Path | None, data_dir: Path, *, needs: tuple[str, ...], layout: str) -> Path:
    """Return the given folder of a data set, or the one of its name in the data folder.

    Raises:
        AvtError: if something that it needs is not there.
    """
    root = path or data_dir / name
    absent = next((root / part for part in needs if not os.path.exists(root / part)), None)
    if absent is not None:
        raise missing_data(name, where=root, layout=layout, cause=f"there is no {absent}")
    return root


def found_root(name: str, data_dir: Path, *, needs: tuple[str, ...]) -> Path | None:
    """Return the folder of a data set's name in the data folder, or none if it lacks something that it needs."""
    try:
        return find_root(name, None, data_dir, needs=needs, layout="")
    except AvtError:
        return None


class Listed(NamedTuple):
    """The image files and the folders in a folder, and how many others are left out: hidden, no image, a link to nothing."""

    files: list[bytes]
    folders: list[bytes]
    left_out: Counter[str]


def list_folder(folder: bytes) -> Listed:
    """List what is in a folder.

    Raises:
        AvtError: if the folder cannot be read.
    """
    files, folders, left_out = list[bytes](), list[bytes](), Counter[str]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    left_out["hidden"] += 1
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    left_out["links to nothing"] += 1
                elif entry.is_dir():
                    folders.append(entry.name)
                elif not entry.name.lower().endswith(SUFFIXES):
                    left_out[os.fsdecode(os.path.splitext(entry.name)[1].lower()) or "without suffix"] += 1
                elif entry.is_file():
                    files.append(entry.name)
                else:
                    left_out["no regular files"] += 1
    except OSError as error:
        raise _unreadable(folder, error) from error
    return Listed(files, folders, left_out)


def _unreadable(folder: bytes, error: OSError) -> AvtError:
    where = os.fsdecode(folder)
    return AvtError(f"The folder {where} cannot be read: {error.strerror}. Check its permissions and its disk.")


def _identity(folder: bytes | Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def walk(
    folder: bytes, below: bytes, walked: set[tuple[int, int]], left_out: Counter[str], listed: Listed | None = None
) -> Iterator[tuple[bytes, int]]:
    """List the image files in a folder, which may be listed already, and below, sorted by name: (name, size in bytes).

    Links to folders are followed; a folder is walked once.
    """
    identity = _identity(folder)
    if identity in walked:
        return
    walked.add(identity)
    files, folders, others = listed or list_folder(folder)
    left_out.update(others)
    for name in sorted([*files, *(name + b"/" for name in folders)]):  # as the paths sort
        if name.endswith(b"/"):
            yield from walk(os.path.join(folder, name[:-1]), below + name, walked, left_out)
        else:
            try:
                yield below + name, os.stat(os.path.join(folder, name)).st_size
            except OSError as error:
                raise _unreadable(folder, error) from error


def list_classes(
    root: Path, left_out: Counter[str], *, labelled: bool, listed: Listed | None = None
) -> tuple[bytes, tuple[str, ...] | None]:
    """List the images in a folder, which may be listed already, and below, see `write_listing`, and its classes, if any.

    With no image in the folder itself, each folder in it that has images, at any depth, is a class; sorted, as torchvision's
    ImageFolder does. Else, and if not `labelled`, there are no classes and all labels are -1.
    """
    start, classes = os.fsencode(root), list[str]()
    walked = {_identity(parent) for parent in root.resolve().parents}  # a link to a parent ends there
    listed = listed or list_folder(start)
    if listed.files or not labelled:
        return write_listing((*file, -1) for file in walk(start, b"", walked, left_out, listed)), None

    walked.add(_identity(root))

    def by_class() -> Iterator[ListedFile]:
        for folder in sorted(listed.folders):
            empty = True
            for file in walk(os.path.join(start, folder), folder + b"/", walked, left_out):
                yield *file, len(classes)
                empty = False
            if not empty:
                classes.append(folder.decode(errors="backslashreplace"))

    left_out.update(listed.left_out)
    return write_listing(by_class()), tuple(classes)


def check_same_classes(root: Path, **classes: tuple[str, ...]) -> None:
    """Check that two splits, by name, have the same classes.

    Raises:
        AvtError: with the first class of each that the other lacks.
    """
    (first, ours), (second, theirs) = classes.items()
    lacking, more = sorted({*ours} - {*theirs}), sorted({*theirs} - {*ours})
    if lacking or more:
        parts = [f"{len(lacking)} of {first} are not in {second} (first {lacking[0]})"] if lacking else []
        parts += [f"{len(more)} of {second} are not in {first} (first {more[0]})"] if more else []
        raise AvtError(
            f"The class folders in {root} differ: {', '.join(parts)}. Expected the same names in {first} and in {second}."
        )


def write_listing(files: Iterable[ListedFile]) -> bytes:
    """Write a list of files as `Split.listing` states it, with size and label."""
    listing = bytearray()  # joined at the end, the parts of a million would take several times the memory
    for file in files:
        listing += b"%s\0%d %d\n" % file
    return bytes(listing)


class FileSplit(EncodedSplit):
    """A split whose images are files in a folder.

    The names are one block of bytes: reading a Python string writes its reference count, so that each worker process would
    copy a list of strings.

    Args:
        folder: of the images.
        listing: their names below it, see `write_listing`.
        labelled: whether the labels mean anything.
        how: they are decoded.

    Raises:
        AvtError: if the listing is damaged.
    """

    def __init__(self, folder: Path, listing: bytes, *, labelled: bool = True, how: Decoding = AS_PUBLISHED) -> None:
        starts, ends, labels, end = array("q"), array("q"), array("q"), 0
        while found := _LISTED.match(listing, end):
            starts.append(end)
            ends.append(found.start(1) - 1)
            labels.append(int(found[2]))
            end = found.end()
        if end != len(listing):
            raise AvtError(f"The list of the images in {folder} is damaged after {len(ends)} names.")
        self.folder, self._listing, self.digest = folder, listing, hashlib.blake2b(listing, digest_size=16).digest()
        self.starts, self.ends = (np.frombuffer(numbers, np.int64) for numbers in (starts, ends))
        self.labels = torch.frombuffer(labels, dtype=torch.int64) if labelled and labels else None
        self.how = how

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, i: int) -> str:
        """The file's name below the folder."""
        return os.fsdecode(self._listing[self.starts[i] : self.ends[i]])

    def listing(self) -> bytes:
        """Name, size and label of each file."""
        return self._listing

    def with_listing(self, listing: bytes) -> "FileSplit":
        """Return the split of other files in the folder."""
        return FileSplit(self.folder, listing, labelled=self.labels is not None, how=self.how)

    @contextlib.contextmanager
    def opened(self, i: int) -> Iterator[tuple[BinaryIO, str]]:
        """Open the file of image i, with its path; see `EncodedSplit`."""
        path = self.folder / self.name(i)
        try:
            with open(path, "rb", opener=_open_at_once) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
                    what = f"has {found.st_size} bytes" if stat.S_ISREG(found.st_mode) else "is not a regular file"
                    raise AvtError(f"{path} {what}: expected a file of an image, of at most {MAX_BYTES // 1_000_000} MB.")
                yield file, str(path)
        except OSError as error:
            raise AvtError(f"{path} was listed and cannot be read now: {error.strerror}. Check its disk.") from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for a writer
