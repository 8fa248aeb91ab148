"""Data sets of image files: listing, safe decoding, and splits that read one file at a time."""

import hashlib
import io
import os
import warnings
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from avtcli.contracts import ImageData, Split
from avtcli.errors import AvtError
from avtplugins.datasets._files import missing_data

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
SUFFIXES: Final = (b".jpeg", b".jpg", b".png", b".webp", b".bmp", b".ppm")
MAX_PIXELS: Final = 50_000_000
"""The most pixels of an image; more are refused before decoding."""

# of ImageNet's images in [0, 1], as in the release
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)

ListedFile = tuple[bytes, int, int]
"""Name below the folder of the images, size in bytes, and label."""


def find_root(name: str, path: str | None, data_dir: Path, *, needs: tuple[str, ...], layout: str) -> Path:
    """Return the given folder of a data set, or the one of its name in the data folder.

    Raises:
        AvtError: if something that it needs is not there.
    """
    root = Path(path).expanduser() if path else data_dir / name
    absent = next((root / part for part in needs if not os.path.exists(root / part)), None)
    if absent is not None:
        raise missing_data(name, where=root, layout=layout, cause=f"there is no {absent}")
    return root


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


def decode_image(content: bytes, *, name: str) -> Tensor:
    """Decode an image file to RGB, uint8 (3, H, W), without applying an EXIF orientation, as torchvision's ImageFolder.

    Decoders of other formats than `FORMATS` never run.

    Raises:
        AvtError: if it does not decode, is cut short, or states more than `MAX_PIXELS` pixels.
    """
    with warnings.catch_warnings():  # Pillow warns of odd metadata in thousands of published images
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width}x{image.height} px")
                pixels = np.array(image.convert("RGB"))
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


class FileSplit(Split):
    """A split whose images are files in a folder, read one at a time.

    The names are one block of bytes: reading a Python string writes its reference count, so that each worker process would
    copy a list of strings.
    """

    images: Tensor | None = None

    def __init__(self, folder: Path, files: Iterable[ListedFile], *, labelled: bool = True) -> None:
        names, ends, labels, digest = bytearray(), array("q"), array("q"), hashlib.blake2b(digest_size=16)
        for name, size, label in files:
            names += name
            ends.append(len(names))
            labels.append(label)
            digest.update(b"%s\0%d %d\n" % (name, size, label))
        self.folder, self.names, self.digest = folder, bytes(names), digest.digest()
        self.ends = np.array(ends, np.int64)
        self.labels = torch.from_numpy(np.array(labels, np.int64)) if labelled else None

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, i: int) -> str:
        """The file's name below the folder."""
        return os.fsdecode(self.names[self.ends[i - 1] if i else 0 : self.ends[i]])

    def read(self, i: int) -> Tensor:
        """Image i, uint8 (3, H, W).

        Raises:
            AvtError: naming the file, if it cannot be read or does not decode.
        """
        path = self.folder / self.name(i)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise AvtError(f"{path} was listed and cannot be read now: {error.strerror}. Check its disk.") from error
        return decode_image(content, name=str(path))


def file_data(train: FileSplit, test: FileSplit | None, **facts: Any) -> ImageData:
    """Make a data set of RGB files; its fingerprint is a hash of their names, sizes and labels, in order."""
    digests = b"".join(split.digest for split in (train, test) if split is not None)
    fingerprint = hashlib.blake2b(digests, digest_size=16).hexdigest()
    return ImageData(train, test, channels=3, size=None, fingerprint=fingerprint, **facts)
