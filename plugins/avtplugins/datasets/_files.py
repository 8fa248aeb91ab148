"""What the data sets share: finding their files, downloading them, and saying what is missing."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from avtcli.errors import AvtError


def missing_data(name: str, *, where: Path, layout: str, cause: str = "") -> AvtError:
    """The error for a data set that is not there: what is missing, the layout expected, and what to try instead."""
    because = f" ({cause})" if cause else ""
    return AvtError(
        f"The data set '{name}' is not in {where}{because}. Expected there: {layout}. Say where it lies with "
        f"`--dataset {name}:DIR` or `--data-dir DIR`, or try the embedded data: `--dataset fashion-mini`."
    )


def require_whole(name: str, folder: Path, files: Sequence[str]) -> None:
    """Check that all files of a data set are in a folder.

    Raises:
        AvtError: naming the missing ones, where some are there and some not.
    """
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise AvtError(
            f"The data set '{name}' in {folder} is not whole: {len(missing)} of {len(files)} files are missing, the first "
            f"is {missing[0]}. Delete the folder to have it downloaded again, or copy the missing files there."
        )


def download(name: str, fetch: Callable[[], None], *, where: Path, layout: str) -> None:
    """Download a data set; what and where to is said on stderr, and torchvision shows the progress there.

    Raises:
        AvtError: if that fails, as without a network, or the folder cannot be written.
    """
    print(f"downloading {name} to {where}", file=sys.stderr, flush=True)
    try:
        fetch()
    except (OSError, RuntimeError) as error:
        raise missing_data(name, where=where, layout=layout, cause=f"and its download failed: {error}") from error


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """A hash of the bytes and shapes of tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
