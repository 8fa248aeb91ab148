"""Images that do not fit in memory: read, resized, cropped and flipped in worker processes, a batch ahead of the network.

A batch crosses once, as uint8 of the network's size. Everything random is drawn before (see `loaders.EpochTable`) and sent to
the worker with the work, so their index cannot matter.
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
from avtcli.data.images import CropSpec, Images, cut, resize
from avtcli.errors import AvtError, RunFailedError

PREFETCH: Final = 2  # batches that each worker prepares ahead
MOST_WORKERS: Final = 8  # that auto starts
SHM: Final = "/dev/shm"  # where Linux keeps the batches that cross
QUIET: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the main process alone answers these


@dataclass(frozen=True)
class BatchSpec:
    """One batch for a worker, in plain indices: a tensor would take a file descriptor to cross."""

    indices: list[int]
    uniforms: list[list[float]] | None
    window: CropSpec


class BatchDataset(Dataset[Tensor | str]):
    """Does the work of a batch, in a worker or in the main process.

    Args:
        split: where the images are read.
        shorter: the shorter side after resizing, or none.
    """

    def __init__(self, split: Split, shorter: int | None) -> None:
        self.split = split
        self.shorter = shorter

    def __getitem__(self, work: BatchSpec) -> Tensor | str:
        """The batch, uint8 (B, C, *size), or what is wrong with it: an error would cross with a worker's traceback."""
        images = []
        try:
            for i, index in enumerate(work.indices):
                image = resize(self.split.read(index), self.shorter)
                uniforms = None if work.uniforms is None else work.uniforms[i]
                images.append(cut(image, work.window, uniforms, name=self.split.name(index)))
        except AvtError as error:
            return str(error)
        return torch.stack(images)


class Plan:
    """The works of the pass that begins next; a loader with persistent workers asks for them anew at each pass."""

    def __init__(self) -> None:
        self.works: Callable[[], Iterator[BatchSpec]] = lambda: iter(())

    def __iter__(self) -> Iterator[BatchSpec]:
        return self.works()


class StreamedImages(Images):
    """Images that are read when they are needed. The workers start with the first batch and end with this object.

    Args:
        split: where they are read.
        indices: which of them, (n,) int64.
        device: where the batches go.
        shorter: the shorter side after resizing, or none.
        workers: processes that read; with 0 the main process does.
    """

    def __init__(
        self, split: Split, indices: Tensor, *, device: torch.device, shorter: int | None = None, workers: int = 0
    ) -> None:
        self.indices = indices
        self.device = device
        self.passes = 0
        self._plan = Plan()
        loader: DataLoader[Any] = DataLoader(
            BatchDataset(split, shorter),
            batch_size=None,  # a work is a whole batch
            sampler=self._plan,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_signals,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # without one of its own it would move the global one
        )
        self._loader = [loader]  # the only place, so that clearing it ends the loader
        self._processes: list[BaseProcess] = []
        weakref.finalize(self, _end, self._loader, self._processes)

    def __len__(self) -> int:
        return len(self.indices)

    def read_batches(self, batches: Sequence[Tensor], window: CropSpec, uniforms: Tensor | None = None) -> Iterator[Tensor]:
        """Read batches in their order, ahead of the caller; see `Images`.

        One pass at a time: when another begins, this one is over.

        Raises:
            AvtError: naming the image, if one does not decode or is smaller than the window.
            RunFailedError: if a worker ended, as when the system killed it.
        """
        self.passes += 1
        mine, indices = self.passes, self.indices

        def works() -> Iterator[BatchSpec]:  # without self, which must end when its owner lets go
            for rows in batches:
                yield BatchSpec(indices[rows].tolist(), None if uniforms is None else uniforms[rows].tolist(), window)

        self._plan.works = works
        with _quiet_start(self._processes):
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
        if not str(error).startswith("DataLoader worker (pid"):  # a fault in a worker's code keeps its traceback
            raise
        raise RunFailedError(
            f"A process that reads images ended ({error}). If the system killed it for memory, give fewer `--workers`."
        ) from error


def _ignore_signals(worker: int) -> None:
    """A signal to the process group is for the main process: it finishes the step, for which it needs the workers."""
    for index in QUIET:
        signal.signal(index, signal.SIG_IGN)


@contextmanager
def _quiet_start(processes: list[BaseProcess]) -> Iterator[None]:
    """Start workers without a moment in which a signal could reach them, and note which they are.

    The loader also installs a handler that raises a worker's end in the middle of whatever the main process does: the one
    before is put back, and the end is seen when the next batch is asked for.
    """
    before = set(multiprocessing.active_children())
    handler = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, QUIET)  # the workers inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        processes += [process for process in multiprocessing.active_children() if process not in before]


def _end(loader: list[DataLoader[Any]], processes: list[BaseProcess]) -> None:
    """Let the workers go, and kill those that do not: they ignore the signal that Python would end them with."""
    loader.clear()
    for process in processes:
        process.kill()


def choose_workers(asked: int | None, split: Split, *, batch_bytes: int) -> int:
    """How many processes read images.

    Args:
        asked: a index, or none for auto: one less than this process's share of the CPUs, at most 8, and no more than
            /dev/shm holds the batches of. With 0 the main process reads.
        split: where images are read; one in memory needs none, whatever is asked.
        batch_bytes: of one uint8 batch of this process.

    Raises:
        AvtError: if the batches of as many as asked for do not fit in /dev/shm.
    """
    if split.images is not None or asked == 0:
        return 0
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = shutil.disk_usage(SHM).free // ranks if os.path.isdir(SHM) else None
    if asked is None:
        fitting = MOST_WORKERS if free is None else int(0.8 * free // batch_bytes - 1) // PREFETCH
        return max(0, min(MOST_WORKERS, _cpus() // ranks - 1, fitting))
    needed = (PREFETCH * asked + 1) * batch_bytes
    if free is not None and needed > free:
        raise AvtError(
            f"--workers {asked} needs {needed / 1e6:.0f} MB in {SHM} for the batches made ahead, {free / 1e6:.0f} MB are free. "
            "Give fewer or `--workers auto`, a smaller --batch-size, or a container more of it (`docker run --shm-size=8g`)."
        )
    return asked


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
