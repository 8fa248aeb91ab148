"""Files of data sets: checks, downloads, errors, and the data sets made of arrays in them."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from avtcli.contracts import ImageData, MemorySplit, Notify
from avtcli.errors import AvtError

RGB = tuple[float, float, float]
"""A figure of each channel."""


def missing_data(name: str, *, where: Path, layout: str, cause: str = "") -> AvtError:
    """Return the error for a missing data set, with the layout expected."""
    because = f" ({cause})" if cause else ""
    return AvtError(f"'{name}' is not in {where}{because}. Expected: {layout}. Give --data-dir DIR, or --dataset fashion-mini.")


def first_with_files(folders: Iterable[Path], files: Sequence[str]) -> Path | None:
    """Return the first folder that has any of a data set's files, complete or not; none if there is none."""
    return next((folder for folder in folders if any((folder / file).is_file() for file in files)), None)


def require_files(name: str, folder: Path, files: Sequence[str]) -> None:
    """Check that all files of a data set are in a folder.

    Raises:
        AvtError: with the first missing one.
    """
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise AvtError(
            f"'{name}' in {folder} is incomplete: {len(missing)} of {len(files)} files are missing, as {missing[0]}. Copy them "
            "there, or delete the folder and download it again."
        )


def silent(text: str) -> None:
    """Discard a line of text."""


def download(name: str, fetch: Callable[[], None], *, where: Path, layout: str, notify: Notify) -> None:
    """Download a data set, which is reported with the folder; torchvision shows its progress on stderr.

    Raises:
        AvtError: if the download fails, or the folder cannot be written.
    """
    notify(f"downloading {name} to {where}")
    try:
        fetch()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        cause = getattr(reason, "strerror", None) or reason
        raise missing_data(name, where=where, layout=layout, cause=f"download failed: {cause}") from error


def fingerprint_of(tensors: Sequence[Tensor]) -> str:
    """Hash the bytes and shapes of tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def memory_data(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], **facts: Any) -> ImageData:
    """Make a data set of images (n, C, 32, 32) and labels (n,); its fingerprint is a hash of their bytes and shapes."""
    splits = MemorySplit(*train, prefix="train"), MemorySplit(*test, prefix="test")
    fingerprint = fingerprint_of((*train, *test))
    return ImageData(*splits, channels=train[0].shape[1], size=(32, 32), fingerprint=fingerprint, **facts)
