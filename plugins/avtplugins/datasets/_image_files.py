"""Image files: a compact list of names, and safe decoding."""

import hashlib
import io
import os
import warnings
from array import array
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from avtcli.contracts import Split
from avtcli.errors import AvtError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
SUFFIXES: Final = (b".jpeg", b".jpg", b".png", b".webp", b".bmp", b".ppm")
MAX_PIXELS: Final = 50_000_000
"""The most pixels of an image; more are refused before decoding."""

# of ImageNet's images in [0, 1], as in the release
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)


class FileList:
    """A growing list of file names and labels.

    The names are one block of bytes: reading a Python string writes its reference count, so that each worker process would
    copy a list of strings.
    """

    def __init__(self) -> None:
        self.names = bytearray()
        self.ends = array("q")
        self.labels = array("q")
        self.digest = hashlib.blake2b(digest_size=16)

    def __len__(self) -> int:
        return len(self.ends)

    def add(self, name: bytes, size: int, label: int) -> None:
        """Add a file: name below the list's folder, size in bytes, class."""
        self.names += name
        self.ends.append(len(self.names))
        self.labels.append(label)
        self.digest.update(b"%s\0%d %d\n" % (name, size, label))


def fingerprint(lists: list[FileList]) -> str:
    """Return a hash of the names, sizes and labels of files, in order."""
    return hashlib.blake2b(b"".join(files.digest.digest() for files in lists), digest_size=16).hexdigest()


def list_images(folder: Path) -> list[tuple[bytes, int]]:
    """List the image files directly in a folder, by suffix, sorted, without hidden ones: (name, size in bytes).

    Raises:
        AvtError: if the folder cannot be read.
    """
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            return sorted(
                (entry.name, entry.stat().st_size)
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(b".") and entry.is_file()
            )
    except OSError as error:
        raise AvtError(f"The folder {folder} cannot be read: {error.strerror}. Check its permissions and its disk.") from error


def decode_image(content: bytes, *, name: str) -> Tensor:
    """Decode an image file to RGB, without applying an EXIF orientation, as torchvision's ImageFolder.

    Args:
        content: the file's bytes; decoders of other formats than `FORMATS` never run.
        name: of the file, for messages.

    Returns:
        uint8, (3, H, W).

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
    """A split whose images are files, read one at a time.

    Args:
        folder: parent of the names.
        files: the images with their labels.
    """

    images: Tensor | None = None

    def __init__(self, folder: Path, files: FileList) -> None:
        self.folder = folder
        self.names = bytes(files.names)
        self.ends = np.array(files.ends, np.int64)
        self.labels: Tensor | None = torch.from_numpy(np.array(files.labels, np.int64))

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
