"""Files of data sets: checks, downloads and errors."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from avtcli.errors import AvtError


def missing_data(name: str, *, where: Path, layout: str, cause: str = "") -> AvtError:
    """Return the error for a missing data set, with the layout expected."""
    because = f" ({cause})" if cause else ""
    return AvtError(
        f"The data set '{name}' is not in {where}{because}. Expected there: {layout}. Give its folder with "
        f"`--dataset {name}:DIR` or `--data-dir DIR`, or try the embedded data: `--dataset fashion-mini`."
    )


def require_files(name: str, folder: Path, files: Sequence[str]) -> None:
    """Check that all files of a data set are in a folder.

    Raises:
        AvtError: with the first missing one.
    """
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise AvtError(
            f"The data set '{name}' in {folder} is incomplete: {len(missing)} of {len(files)} files are missing, the first "
            f"is {missing[0]}. Delete the folder to have it downloaded again, or copy the missing files there."
        )


def download(name: str, fetch: Callable[[], None], *, where: Path, layout: str) -> None:
    """Download a data set; a message on stderr names it and the folder, and torchvision shows its progress there.

    Raises:
        AvtError: if the download fails, or the folder cannot be written.
    """
    print(f"downloading {name} to {where}", file=sys.stderr, flush=True)
    try:
        fetch()
    except (OSError, RuntimeError) as error:
        raise missing_data(name, where=where, layout=layout, cause=f"and its download failed: {error}") from error


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Return a hash of the bytes and shapes of tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
