"""Compute devices, numeric precision, and the context of a command."""

import ctypes
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Final

import torch
import torch.distributed
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from pydantic import Field
from torch import Tensor
from torch.distributed import ProcessGroup

from avtcli.config.components import Flag, Frozen
from avtcli.config.resolution import validate
from avtcli.errors import AvtError, RunFailedError, one_line
from avtcli.events import Notice, OnEvent, ignore
from avtcli.runtime.launcher import ACCELERATE_VARIABLES, VARIABLES, connect, read_launch, unstarted_tasks
from avtcli.runtime.processes import build_cpu_group

MEASURING: Final = timedelta(days=1)
"""How long a process that measures waits for another, which may train a head meanwhile."""


def choose_device(name: str) -> str:
    """Resolve auto, cpu, cuda or mps; an `AvtError` lists the devices where it is not available."""
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in has.items() if present)
    if name == "cpu":
        _keep_freed_memory()
    if not has.get(name):
        here = ", ".join(device for device, present in has.items() if present)
        raise AvtError(f"There is no {name} device here, or this torch cannot use it. Devices: {here}.")
    return name


def _keep_freed_memory() -> None:
    """Let glibc reuse freed memory of large tensors; returning it to the kernel costs page faults at each batch."""
    if platform.libc_ver()[0] == "glibc":
        libc, mmap_threshold, trim_threshold = ctypes.CDLL(None), -3, -1  # malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def choose_precision(name: str, device: str) -> str:
    """Resolve auto, fp32, bf16 or fp16; an `AvtError` refuses what the device does not support."""
    if name == "auto":
        return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name == "fp16" and device == "cpu":
        raise AvtError("fp16 training needs a GPU, the device is cpu. Choose --precision fp32.")
    if name == "bf16" and device == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        raise AvtError("This CPU has no bf16 arithmetic, so bf16 would be many times slower. Choose --precision fp32.")
    return name


def build_accelerator(device: str, precision: str, *, on_event: OnEvent) -> Accelerator:
    """Build the accelerator of this process, one of WORLD_SIZE, which must all be connected.

    Variables that set up Accelerate are ignored, with a notice: the settings alone decide.
    """
    world = read_launch().world
    if world == 1:
        AcceleratorState._reset_state(True)  # global state: discard that of an earlier run in this process
    mixed = "no" if precision == "fp32" else precision
    handlers = [DistributedDataParallelKwargs(static_graph=True, gradient_as_bucket_view=True)]
    ignored = sorted(name for name in os.environ if name.startswith(ACCELERATE_VARIABLES))
    if ignored:
        on_event(Notice(f"ignored, as options alone decide: the environment variables {', '.join(ignored)}"))
    if unstarted := unstarted_tasks():
        on_event(Notice(unstarted))
    connect(device, on_event=on_event)
    with _without_variables([*ignored, *(VARIABLES if world == 1 else ())]):
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed, kwargs_handlers=handlers)
    found = accelerator.num_processes
    if found != world:
        raise AvtError(f"{world} processes were started and {found} connected: give --device to all of them.")
    return accelerator


@contextmanager
def _without_variables(names: Sequence[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def describe_device(accelerator: Accelerator) -> str:
    """Name the device: its type, with the GPU's name or the number of CPU threads."""
    if accelerator.device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(accelerator.device)})"
    threads = torch.get_num_threads()
    return f"{accelerator.device.type} ({threads} thread{'s' * (threads > 1)})" if accelerator.device.type == "cpu" else "mps"


def has_room(device: torch.device, count: int) -> bool:
    """Whether twice `count` bytes are free on a CUDA device; always true elsewhere, where memory is shared with the host."""
    if device.type != "cuda":
        return True
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # cached by PyTorch
    return 2 * count <= torch.cuda.mem_get_info(device)[0] + idle


@contextmanager
def memory_errors_explained() -> Iterator[None]:
    """Turn the failure to allocate a tensor, on a GPU or the CPU, into a `RunFailedError`."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise RunFailedError(
            f"A training step does not fit in memory ({one_line(error).split('. ')[0]}). Give a smaller --batch-size or "
            "`-o augment.crop=N`, or checkpoint_activations = true in a recipe."
        ) from error


def seed_model(seed: int, device: torch.device) -> None:
    """Seed the draws of layers, dropout and drop path, on the device alone."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    elif device.type == "cuda":
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
    else:
        torch.manual_seed(seed)


@contextmanager
def float32_products(*, reduced: bool) -> Iterator[None]:
    """Within, let matrix products of float32 use TF32 where `reduced`: for networks that compute in less precision anyway."""
    before = torch.get_float32_matmul_precision()
    if reduced:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def upload(table: Tensor, device: torch.device) -> Tensor:
    """Send a table to a CUDA device without waiting for it; for other devices it stays on the CPU, and parts of it follow."""
    if device.type != "cuda" or table.is_cuda:
        return table
    return table.pin_memory().to(device, non_blocking=True)


def download(tensor: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Send a tensor to the host without waiting for a CUDA device; the event, where there is one, says when it is there."""
    return tensor.to("cpu", non_blocking=True), end_of_work(tensor.device)


def end_of_work(device: torch.device) -> torch.cuda.Event | None:
    """The event that a CUDA device has done all work given to it so far; none for other devices."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move float64 parameters to a device, as float32 where it has no float64 (mps)."""
    return tensor.to(device, torch.float32 if device.type == "mps" else tensor.dtype)


class _Arguments(Frozen):
    """The arguments of a context, checked."""

    device: Annotated[str, Flag()]
    workers: Annotated[int | None, Flag()] = Field(default=None, ge=0)
    seed: Annotated[int, Flag()] = 0


@dataclass(frozen=True)
class Context:
    """How a command runs: compute device, processes that read images (none: automatic), seed, and receiver of events.

    In the `group`, if there is one, several processes share the work.
    """

    device: torch.device
    workers: int | None = None
    seed: int = 0
    on_event: OnEvent = ignore
    group: ProcessGroup | None = None

    @classmethod
    def build(cls, *, device: str = "auto", workers: int | None = None, seed: int = 0, on_event: OnEvent = ignore) -> "Context":
        """Resolve a device by name: auto, cpu, cuda or mps; see `choose_device`. Processes that were launched are connected.

        Raises:
            AvtError: for a device that is not there, fewer than 0 processes, or a seed that is no integer of 64 bits.
        """
        asked = validate(_Arguments, {"device": device, "workers": workers, "seed": seed}, where="the arguments")
        chosen = choose_device(asked.device)
        if read_launch().world == 1:
            return cls(torch.device(chosen), asked.workers, asked.seed, on_event)
        accelerator = build_accelerator(chosen, "fp32", on_event=on_event)
        return cls(accelerator.device, asked.workers, asked.seed, on_event, build_cpu_group(accelerator, wait=MEASURING))

    @property
    def is_main(self) -> bool:
        """Whether this process is alone or the first: the one that writes."""
        return self.group is None or torch.distributed.get_rank() == 0
