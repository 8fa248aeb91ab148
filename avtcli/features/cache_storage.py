"""Storage of cached features: a GPU, memory, or memory-mapped files where they would take too much of both."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from avtcli.errors import AvtError
from avtcli.runtime.devices import has_room
from avtcli.runtime.launcher import read_launch
from avtcli.storage.files import disk_errors_explained

CPU = torch.device("cpu")
MEMORY_SHARE = 0.25  # features that take more of the memory are cached on disk


def memory_bytes() -> int:
    """The memory of the machine, or the limit of its container where that is less, in bytes."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(installed, int(text)) if text.isdecimal() else installed


def fits_memory(needed: int) -> bool:
    """Whether a number of bytes for each process of this machine is within `MEMORY_SHARE` of the memory."""
    return needed * read_launch().local_world <= MEMORY_SHARE * memory_bytes()


def choose_storage(
    needed: int, *, device: torch.device = CPU, advice: str = "Give fewer images, fewer layers or a smaller --pool-size"
) -> torch.device | Path:
    """Choose where features of a size in bytes are cached: on their device if that is a GPU, on the CPU, or in a folder.

    Raises:
        AvtError: if they fit on neither, with the advice.
    """
    if device.type == "cuda" and has_room(device, needed):
        return device
    if fits_memory(needed):
        return CPU
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if needed * read_launch().local_world > free:
        raise AvtError(
            f"The features take {needed / 1e9:.0f} GB, more than {MEMORY_SHARE:.0%} of the memory, and {folder} has "
            f"{free / 1e9:.0f} GB free. {advice}, or set TMPDIR."
        )
    return folder


def allocate(shape: Sequence[int], storage: torch.device | Path) -> Tensor:
    """Allocate a float32 tensor on a device, or in a memory-mapped file of a folder; see `choose_storage`.

    The file is unlinked at once, so that nothing is left on disk however the process ends.
    """
    if isinstance(storage, torch.device):
        return torch.empty(*shape, device=storage)
    descriptor, name = tempfile.mkstemp(prefix="avt-features-", dir=storage)
    try:
        with disk_errors_explained(storage):
            os.truncate(descriptor, 4 * prod(shape))
            if hasattr(os, "posix_fallocate"):  # writing to a mapped file on a full disk would kill the process
                os.posix_fallocate(descriptor, 0, 4 * prod(shape))
            os.close(descriptor)
        return torch.from_file(name, shared=True, size=prod(shape), dtype=torch.float32).view(*shape)
    finally:
        os.unlink(name)
