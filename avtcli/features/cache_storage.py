"""Where features are kept: in memory, or where they take too much of it, in files that are mapped into it."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from avtcli.errors import AvtError
from avtcli.storage.files import disk_errors_explained

MEMORY_SHARE = 0.25
"""Of this machine's memory: features that take more are kept on disk, mapped into memory."""


def memory_bytes() -> int:
    """The memory of this machine, or of the container that it grants less to, in bytes."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(there, int(text)) if text.isdecimal() else there


def fits_memory(needed: int) -> bool:
    """Whether so many bytes are within our share of this machine's memory."""
    return needed <= MEMORY_SHARE * memory_bytes()


def choose_storage(needed: int, *, advice: str = "Give fewer images, fewer layers or a smaller --pool-size") -> Path | None:
    """Where features of so many bytes are to be kept: none for memory, or a folder where they exceed `MEMORY_SHARE` of it.

    Args:
        needed: in bytes.
        advice: what to do where they fit on neither.

    Raises:
        AvtError: if they fit on neither.
    """
    if fits_memory(needed):
        return None
    there = memory_bytes()
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise AvtError(
            f"The features would take {needed / 1e9:.0f} GB, more than {MEMORY_SHARE:.0%} of the {there / 1e9:.0f} GB of "
            f"memory, and {folder} has {free / 1e9:.0f} GB free. {advice}, or set TMPDIR to a folder with more room."
        )
    return folder


def allocate(shape: Sequence[int], store: Path | None) -> Tensor:
    """An empty float32 tensor in memory or, mapped into it, in a folder's file; see `choose_storage`.

    The file has lost its name already, so that whatever happens leaves nothing behind.
    """
    if store is None:
        return torch.empty(*shape)
    number, name = tempfile.mkstemp(prefix="avt-features-", dir=store)
    try:
        with disk_errors_explained(store):
            os.truncate(number, 4 * prod(shape))
            if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process
                os.posix_fallocate(number, 0, 4 * prod(shape))
            os.close(number)
        return torch.from_file(name, shared=True, size=prod(shape), dtype=torch.float32).view(*shape)
    finally:
        os.unlink(name)
