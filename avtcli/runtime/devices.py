"""Devices, precision and signals: what a run stands on."""

import ctypes
import os
import platform
from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch import Tensor

from avtcli.errors import AvtError


def choose_device(name: str) -> str:
    """Resolve auto, cpu, cuda or mps.

    Raises:
        AvtError: if the device is not there.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in has.items() if present)
    if name == "cpu":
        _keep_freed_memory()
    if not has[name]:
        here = ", ".join(device for device, present in has.items() if present)
        raise AvtError(f"There is no {name} device here, or this torch cannot use it. Devices: {here}.")
    return name


def _keep_freed_memory() -> None:
    """Let glibc keep what large tensors leave for the next ones, rather than return it and fault every page in again.

    Measured on two x86 cores: a forward pass of a NIN at width 0.25, 250 images of 32 px a batch, took 1.4 to 1.9 times as
    long without, most of it in the kernel; a training step of 128 images 1.05 times. Peak memory stayed the same.
    """
    if platform.libc_ver()[0] == "glibc":
        libc, mmap_threshold, trim_threshold = ctypes.CDLL(None), -3, -1  # malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def choose_precision(name: str, device: str) -> str:
    """Resolve auto, fp32, bf16 or fp16 for a device.

    Raises:
        AvtError: if the device cannot.
    """
    if name == "auto":
        return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name == "fp16" and device == "cpu":
        raise AvtError("fp16 training needs a GPU, the device is cpu. Choose --precision fp32.")
    if name == "bf16" and device == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        raise AvtError("This CPU has no bf16 arithmetic, so bf16 would be many times slower. Choose --precision fp32.")
    return name


def build_accelerator(device: str, precision: str) -> Accelerator:
    """Make the accelerator of this process, alone or one of those that torchrun started.

    Raises:
        AvtError: if it does not see the processes that were started.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        AcceleratorState._reset_state(True)  # it is global: an earlier run of this process must not decide for this one
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=5))],
    )
    if accelerator.num_processes != world:
        raise AvtError(
            f"{world} processes were started and {accelerator.num_processes} found each other. Give --device for all of them."
        )
    return accelerator


def device_in_words(accelerator: Accelerator) -> str:
    """The device as a person would name it."""
    if accelerator.device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(accelerator.device)})"
    threads = torch.get_num_threads()
    return f"{accelerator.device.type} ({threads} thread{'s' * (threads > 1)})" if accelerator.device.type == "cpu" else "mps"


def has_room(device: torch.device, count: int) -> bool:
    """Whether a device has twice so many bytes free; the CPU and MPS are not asked, they share the machine's memory."""
    if device.type != "cuda":
        return True
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch keeps what was freed
    return 2 * count <= torch.cuda.mem_get_info(device)[0] + idle


def seed_model(seed: int, device: torch.device) -> None:
    """Seed what layers draw by themselves, dropout and drop path; of a CPU its own generator alone, which takes no time."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Send a float64 table's rows to a device, in float32 where it has no float64."""
    return tensor.to(device, torch.float32 if device.type == "mps" else tensor.dtype)
