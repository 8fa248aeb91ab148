"""Images that do not fit in memory: read, resized, cropped and flipped in worker processes, ahead of the network.

A batch crosses once, as uint8 of network size. All random values are drawn before (see `epoch_table.EpochTable`) and sent to
the worker with the batch specification, so the number of workers changes nothing.
"""

import multiprocessing
import os
import shutil
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avtcli.contracts import Split
from avtcli.data.images import CropSpec, Images, crop_image, resize
from avtcli.errors import AvtError, RunFailedError
from avtcli.runtime.launcher import read_launch

PREFETCH: Final = 2  # batches that each worker prepares ahead
MAX_WORKERS: Final = 8
SHM: Final = "/dev/shm"  # the shared memory that batches cross, on Linux
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # handled by the main process alone


@dataclass(frozen=True)
class BatchSpec:
    """One batch for a worker, in plain lists: a tensor would need a file descriptor to cross."""

    indices: list[int]
    uniforms: list[list[float]] | None
    crop: CropSpec


class BatchDataset(Dataset[Tensor | str]):
    """Reads one batch, in a worker or in the main process."""

    def __init__(self, split: Split, shorter: int | None) -> None:
        self.split, self.shorter = split, shorter

    def __getitem__(self, spec: BatchSpec) -> Tensor | str:
        """Return the batch, uint8 (B, C, *size), or an error message: an exception would cross with the worker's traceback."""
        images = []
        try:
            for i, index in enumerate(spec.indices):
                image = resize(self.split.read(index), self.shorter)
                uniforms = None if spec.uniforms is None else spec.uniforms[i]
                images.append(crop_image(image, spec.crop, uniforms, name=self.split.name(index)))
        except AvtError as error:
            return str(error)
        return torch.stack(images)


class BatchSampler:
    """The batch specifications of the next pass; a loader with persistent workers iterates over them at each pass."""

    def __init__(self) -> None:
        self.specs: Callable[[], Iterator[BatchSpec]] = lambda: iter(())

    def __iter__(self) -> Iterator[BatchSpec]:
        return self.specs()


class StreamedImages(Images):
    """Images that are read on demand; the arguments are those of `resident_images.build_images`.

    The workers start with the first batch and end with this object.
    """

    def __init__(
        self, split: Split, indices: Tensor, *, device: torch.device, shorter: int | None = None, workers: int = 0
    ) -> None:
        self.indices, self.device, self.passes, self._sampler = indices, device, 0, BatchSampler()
        loader: DataLoader[Any] = DataLoader(
            BatchDataset(split, shorter),
            batch_size=None,  # an item is a batch
            sampler=self._sampler,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_signals,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # the default would draw from the global one
        )
        self._loader = [loader]  # the only reference: clearing the list ends the loader
        self._processes: list[BaseProcess] = []
        weakref.finalize(self, _end, self._loader, self._processes)

    def __len__(self) -> int:
        return len(self.indices)

    def read_batches(self, batches: Sequence[Tensor], crop: CropSpec, uniforms: Tensor | None = None) -> Iterator[Tensor]:
        """Read batches in their order, ahead of the caller; see `Images`.

        One pass at a time: a new pass ends the one before.

        Raises:
            AvtError: naming the image, if one does not decode or is smaller than the crop.
            RunFailedError: if a worker process ended.
        """
        self.passes += 1
        mine, indices = self.passes, self.indices

        def specs() -> Iterator[BatchSpec]:  # without self, which must be collected with its owner
            for rows in batches:
                yield BatchSpec(indices[rows].tolist(), None if uniforms is None else uniforms[rows].tolist(), crop)

        self._sampler.specs = specs
        with _start_workers(self._processes):
            results = iter(self._loader[0])
        for _ in batches:
            if self.passes != mine:
                raise RuntimeError("another pass over these images began before this one ended")
            batch = _next(results)
            if isinstance(batch, str):
                raise AvtError(batch)
            yield batch.to(self.device, non_blocking=self.device.type == "cuda")


def _next(results: Iterator[Tensor | str]) -> Tensor | str:
    try:
        return next(results)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):  # a bug in a worker keeps its traceback
            raise
        raise RunFailedError(
            f"A reader process ended ({error}). If the system killed it for memory, use fewer `--workers`."
        ) from error


def _ignore_signals(worker: int) -> None:
    # the main process needs the workers to finish its step
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _start_workers(processes: list[BaseProcess]) -> Iterator[None]:
    """Start workers with signals blocked, and collect their processes.

    The loader installs a SIGCHLD handler that raises in the middle of whatever the main process does. The previous handler is
    restored; a worker's end is noticed when the next batch is requested.
    """
    before, handler = set(multiprocessing.active_children()), signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited by the workers
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        processes += [process for process in multiprocessing.active_children() if process not in before]


def _end(loader: list[DataLoader[Any]], processes: list[BaseProcess]) -> None:
    """End the workers, and kill those that remain: they ignore the signal that Python would end them with."""
    loader.clear()
    for process in processes:
        process.kill()


def choose_workers(asked: int | None, split: Split, *, batch_bytes: int) -> int:
    """Choose the number of reader processes.

    Args:
        asked: a number, or none for auto: one less than this process's share of the CPUs, at most 8, limited by the room in
            /dev/shm. 0 reads in the main process.
        split: the images; those in memory need no reader.
        batch_bytes: size of one uint8 batch of this process.

    Raises:
        AvtError: if the prefetched batches do not fit in /dev/shm.
    """
    if split.images is not None or asked == 0:
        return 0
    ranks = read_launch().local_world
    free = shutil.disk_usage(SHM).free // ranks if os.path.isdir(SHM) else None
    if asked is None:
        fitting = MAX_WORKERS if free is None else int(0.8 * free // batch_bytes - 1) // PREFETCH
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(0, min(MAX_WORKERS, cpus // ranks - 1, fitting))
    needed = (PREFETCH * asked + 1) * batch_bytes
    if free is not None and needed > free:
        raise AvtError(
            f"--workers {asked} needs {needed / 1e6:.0f} MB in {SHM} for prefetched batches, {free / 1e6:.0f} MB are free. "
            "Use fewer workers, `--workers auto` or a smaller --batch-size, or give the container more, as in "
            "`docker run --shm-size=8g`."
        )
    return asked
