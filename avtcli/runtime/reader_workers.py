"""The number of processes that read images, limited by CPUs and shared memory."""

import os
import shutil
from math import ceil
from typing import Final

from avtcli.contracts import Split
from avtcli.errors import AvtError
from avtcli.runtime.launcher import read_launch

PREFETCH: Final = 2  # batches that each worker prepares ahead
MAX_WORKERS: Final = 8
SHM: Final = "/dev/shm"  # the shared memory that batches cross, on Linux
SHM_SHARE: Final = 0.8  # of what is free there


def choose_workers(asked: int | None, split: Split, *, batch_bytes: int, reserved: int = 0) -> int:
    """Choose the number of reader processes whose batches fit in /dev/shm; 0 reads in the main process.

    Args:
        asked: the most to take, or none for auto: one less than this process's share of the CPUs, at most 8.
        split: the images; those in memory need no reader.
        batch_bytes: size of one uint8 batch of this process.
        reserved: bytes of /dev/shm that other readers of this process need.
    """
    if split.images is not None or asked == 0:
        return 0
    free, ranks = _free_shared_memory(), read_launch().local_world
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = min(MAX_WORKERS, cpus // ranks - 1) if asked is None else asked
    return max(0, min(wanted, wanted if free is None else _workers_in(free - reserved, batch_bytes)))


def require_workers(asked: int | None, split: Split, *, batch_bytes: int) -> int:
    """Choose as `choose_workers`; refuse more than there is room for.

    Raises:
        AvtError: with the number of workers that there is room for.
    """
    workers = choose_workers(asked, split, batch_bytes=batch_bytes)
    if split.images is None and asked is not None and workers < asked:
        needed, room = prefetched_bytes(asked, batch_bytes=batch_bytes), SHM_SHARE * (_free_shared_memory() or 0)
        raise AvtError(
            f"--workers {asked} needs {needed / 1e6:.3g} MB of {SHM}, and {room / 1e6:.3g} MB may be used. Give `--workers "
            f"{workers}`, a --batch-size {ceil(1.1 * needed / max(room, 1))} times smaller, or `docker run --shm-size=8g`."
        )
    return workers


def prefetched_bytes(workers: int, *, batch_bytes: int) -> int:
    """Return the shared memory that the batches of reader processes take."""
    return (PREFETCH * workers + 1) * batch_bytes if workers else 0


def _workers_in(room: float, batch_bytes: int) -> int:
    return int(SHM_SHARE * room // batch_bytes - 1) // PREFETCH


def _free_shared_memory() -> int | None:
    """The bytes that this process may use of /dev/shm, which the processes of a run share; none without one."""
    ranks = read_launch().local_world
    return shutil.disk_usage(SHM).free // ranks if os.path.isdir(SHM) else None
