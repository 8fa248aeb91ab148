"""Data sets of image files: listing, safe decoding, and splits that read one file at a time."""

import hashlib
import os
import re
import stat
import warnings
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from avtcli.contracts import MAX_PIXELS, ImageData, Split
from avtcli.errors import AvtError
from avtplugins.datasets._files import missing_data

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
SUFFIXES: Final = (b".jpeg", b".jpg", b".png", b".webp", b".bmp", b".ppm")
MAX_BYTES: Final = 8 * MAX_PIXELS
"""The most bytes of a file: those of an uncompressed image of four 16-bit channels."""

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


def list_folder(folder: bytes) -> tuple[list[tuple[bytes, int]], list[bytes]]:
    """List the image files, (name, size in bytes), and the folders in a folder, without hidden ones and links to nothing.

    Raises:
        AvtError: if the folder cannot be read.
    """
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(b".") or (entry.is_symlink() and not os.path.exists(entry.path)):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                    files.append((entry.name, entry.stat().st_size))
    except OSError as error:
        where = os.fsdecode(folder)
        raise AvtError(f"The folder {where} cannot be read: {error.strerror}. Check its permissions and its disk.") from error
    return sorted(files), folders


def decode_image(file: BinaryIO, *, name: str) -> Tensor:
    """Decode an image file to RGB, uint8 (3, H, W), without applying an EXIF orientation, as torchvision's ImageFolder.

    Of 16 bits a channel the upper 8 remain, so that the stated range becomes 0 to 255. Transparency is dropped: the colours
    below it show. CMYK is converted without a colour profile. Decoders of other formats than `FORMATS` never run.

    Raises:
        AvtError: if it does not decode, is cut short, states more than `MAX_PIXELS` pixels, or has floating-point pixels, whose
            range no file states.
    """
    with warnings.catch_warnings():  # Pillow warns of odd metadata in thousands of published images
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width}x{image.height} px")
                if not image.width * image.height:
                    raise ValueError(f"it has {image.width}x{image.height} px")
                pixels = _rgb(image)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise AvtError(
                f"{name} states more than {MAX_PIXELS // 1_000_000} million pixels ({error}), too many for one image. "
                "Remove it from the data set, or shrink it."
            ) from error
        except Exception as error:  # a damaged image can fail in any way
            cause = "its first bytes match no format" if isinstance(error, UnidentifiedImageError) else error
            raise AvtError(
                f"{name} does not decode: {cause}. Expected a complete image as {', '.join(FORMATS)}: copy the file again, or "
                "remove it from the data set."
            ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Decode to (H, W, 3); Pillow clips grey levels above 255, and takes the upper 8 of 16 bits in colour."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a stated range")
    if image.mode.startswith("I"):  # 16-bit grey: of PNG, or of PPM, scaled from its stated maximum
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    return np.array(image.convert("RGB"))


def write_listing(files: Iterable[ListedFile]) -> bytes:
    """Write a list of files as `Split.listing` states it, with size and label."""
    return b"".join(b"%s\0%d %d\n" % file for file in files)


class FileSplit(Split):
    """A split whose images are files in a folder, read one at a time.

    The names are one block of bytes: reading a Python string writes its reference count, so that each worker process would
    copy a list of strings.

    Args:
        folder: of the images.
        listing: their names below it, see `write_listing`.
        labelled: whether the labels mean anything.

    Raises:
        AvtError: if the listing is damaged.
    """

    images: Tensor | None = None

    def __init__(self, folder: Path, listing: bytes, *, labelled: bool = True) -> None:
        starts, ends, labels, end = array("q"), array("q"), array("q"), 0
        while found := _LISTED.match(listing, end):
            starts.append(end)
            ends.append(found.start(1) - 1)
            labels.append(int(found[2]))
            end = found.end()
        if end != len(listing):
            raise AvtError(f"The list of the images in {folder} is damaged after {len(ends)} names.")
        self.folder, self._listing, self.digest = folder, listing, hashlib.blake2b(listing, digest_size=16).digest()
        self.starts, self.ends = np.array(starts, np.int64), np.array(ends, np.int64)
        self.labels = torch.from_numpy(np.array(labels, np.int64)) if labelled else None

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
        return FileSplit(self.folder, listing, labelled=self.labels is not None)

    def read(self, i: int) -> Tensor:
        """Image i, uint8 (3, H, W).

        Raises:
            AvtError: naming the file, if it cannot be read or does not decode.
        """
        path = self.folder / self.name(i)
        try:
            with open(path, "rb", opener=_open_at_once) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
                    what = f"has {found.st_size} bytes" if stat.S_ISREG(found.st_mode) else "is not a regular file"
                    raise AvtError(f"{path} {what}: expected a file of an image, of at most {MAX_BYTES // 1_000_000} MB.")
                return decode_image(file, name=str(path))
        except OSError as error:
            raise AvtError(f"{path} was listed and cannot be read now: {error.strerror}. Check its disk.") from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for a writer


def file_data(train: FileSplit, test: FileSplit | None, **facts: Any) -> ImageData:
    """Make a data set of RGB files; its fingerprint is a hash of their names, sizes and labels, in order."""
    digests = b"".join(split.digest for split in (train, test) if split is not None)
    fingerprint = hashlib.blake2b(digests, digest_size=16).hexdigest()
    return ImageData(train, test, channels=3, size=None, fingerprint=fingerprint, **facts)
