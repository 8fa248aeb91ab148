"""Images that do not fit in memory: read, resized, cropped and flipped in worker processes, ahead of the network.

A batch crosses once, as uint8 of network size. All random values are drawn before (see `epoch_table.Draws`) and sent to
the worker with the batch specification, so the number of workers changes nothing.
"""

import multiprocessing
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avtcli.contracts import Split
from avtcli.data.bad_images import BadImages
from avtcli.data.images import CropSpec, Images, crop_image, resize
from avtcli.errors import AvtError, BadImageError, RunFailedError
from avtcli.runtime.reader_workers import PREFETCH
from avtcli.runtime.signals import ASKING


@dataclass(frozen=True)
class BatchSpec:
    """One batch for a worker, in plain lists: a tensor would need a file descriptor to cross."""

    rows: list[int]
    uniforms: list[list[float]] | None
    crop: CropSpec
    skipped: Collection[int]  # indices of images that are known to be bad
    allowed: int  # bad images that may be replaced


class ReadBatch(NamedTuple):
    """What a worker made of a batch: images, uint8 (B, C, *size), none if too many are bad; and why others were not taken."""

    images: Tensor | None
    bad: dict[int, str]  # reasons by the image's index


class BatchDataset(Dataset[ReadBatch]):
    """Reads one batch, in a worker or in the main process."""

    def __init__(self, split: Split, indices: Tensor, shorter: int | None) -> None:
        self.split, self.indices, self.shorter = split if shorter is None else split.resized(shorter), indices, shorter

    def __getitem__(self, spec: BatchSpec) -> ReadBatch:
        """Read a batch; a bad image is replaced by that of the next row, cyclically."""
        images, bad = list[Tensor](), dict[int, str]()
        for i, row in enumerate(spec.rows):
            uniforms = None if spec.uniforms is None else spec.uniforms[i]
            for index in self._from(row):
                if index in spec.skipped or index in bad:
                    continue
                try:
                    images.append(self._read(index, spec.crop, uniforms))
                    break
                except AvtError as error:  # as text: an exception would cross with the worker's traceback
                    bad[index] = str(error)
                    if len(bad) > spec.allowed:
                        return ReadBatch(None, bad)
            else:
                return ReadBatch(None, bad)
        return ReadBatch(torch.stack(images), bad)

    def _from(self, row: int) -> Iterator[int]:
        return (int(self.indices[(row + step) % len(self.indices)]) for step in range(len(self.indices)))

    def _read(self, index: int, crop: CropSpec, uniforms: list[float] | None) -> Tensor:
        image, name = self.split.read(index), self.split.name(index)
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise AvtError(f"{name} was read as {image.dtype} {tuple(image.shape)}, expected uint8 (C, H, W).")
        return crop_image(resize(image, self.shorter, name=name), crop, uniforms, name=name)


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
        self,
        split: Split,
        indices: Tensor,
        *,
        device: torch.device,
        shorter: int | None = None,
        workers: int = 0,
        bad: BadImages | None = None,
    ) -> None:
        self.indices, self.device, self.bad, self.passes, self._sampler = indices, device, bad, 0, BatchSampler()
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than CPUs, as was asked for
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        loader: DataLoader[Any] = DataLoader(
            BatchDataset(split, indices, shorter),
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

    def read_batches(
        self, batches: Sequence[Tensor], crop: CropSpec, uniforms: Iterable[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Read batches in their order, ahead of the caller; see `Images`.

        One pass at a time: a new pass ends the one before. Batches cross to a GPU while it works, one ahead.

        Raises:
            BadImageError: naming the image, if one cannot be read, does not decode, is too large or smaller than the crop, and
                may not be replaced.
            RunFailedError: if a worker process ended.
        """
        if self._copies is None:
            yield from (pixels.to(self.device) for pixels in self._read(batches, crop, uniforms))
            return
        ahead: tuple[Tensor, torch.cuda.Event] | None = None
        for pixels in self._read(batches, crop, uniforms):
            with torch.cuda.stream(self._copies):
                sent = pixels.to(self.device, non_blocking=True)
                arrived = self._copies.record_event()
            if ahead is not None:
                yield _taken(*ahead)
            ahead = sent, arrived
        if ahead is not None:
            yield _taken(*ahead)

    def _read(self, batches: Sequence[Tensor], crop: CropSpec, uniforms: Iterable[Tensor] | None) -> Iterator[Tensor]:
        """Read batches into the host's memory."""
        self.passes += 1
        mine, bad = self.passes, self.bad
        allowed = bad.allowed if bad is not None and bad.skip else 0

        def known() -> frozenset[int]:  # those of batches before too, so that a worker does not try them again
            return frozenset(bad.reasons) if bad is not None else frozenset()

        def specs() -> Iterator[BatchSpec]:  # without self, which must be collected with its owner
            for rows, own in zip(batches, repeat(None, len(batches)) if uniforms is None else uniforms, strict=True):
                yield BatchSpec(rows.tolist(), None if own is None else own.tolist(), crop, known(), allowed)

        self._sampler.specs = specs
        with _start_workers(self._processes), _ended_workers_explained():
            results = iter(self._loader[0])
        for _ in batches:
            if self.passes != mine:
                raise RuntimeError("another pass over these images began before this one ended")
            with _ended_workers_explained():
                batch: ReadBatch = next(results)
            if batch.bad:
                self._note(batch.bad)
            assert batch.images is not None  # else there were more bad images than may be
            yield batch.images

    def _note(self, found: dict[int, str]) -> None:
        if self.bad is None or not self.bad.skip:
            raise BadImageError(next(iter(found.values())))
        self.bad.add(found)


def _taken(pixels: Tensor, arrived: torch.cuda.Event) -> Tensor:
    """A batch that was sent on another stream, for the current one."""
    current = torch.cuda.current_stream(pixels.device)
    current.wait_event(arrived)
    pixels.record_stream(current)
    return pixels


@contextmanager
def _ended_workers_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):  # a bug in a worker keeps its traceback
            raise
        raise RunFailedError(
            f"A reader process ended ({error}). If the system killed it for memory, use fewer `--workers`."
        ) from error


def _ignore_signals(worker: int) -> None:
    # the main process needs the workers to finish its step
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _start_workers(processes: list[BaseProcess]) -> Iterator[None]:
    """Start workers with signals blocked, and collect their processes.

    The loader installs a SIGCHLD handler that raises in the middle of whatever the main process does. The previous handler is
    restored; a worker's end is noticed when the next batch is requested.
    """
    before, handler = set(multiprocessing.active_children()), signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # inherited by the workers
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
