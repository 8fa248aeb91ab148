"""Execution settings of each class of device: memory layout, fused optimiser, compilation, capture."""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

import torch
from torch import nn

from avtcli.config.components import Optimizer
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.errors import AvtError, one_line
from avtcli.events import Notice, OnEvent

Net = TypeVar("Net", bound=nn.Module)
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class ExecutionDefaults:
    """Defaults of one class of device.

    Attributes:
        channels_last: the memory format of convolutions, see `to_channels_last`.
        fused: whether the optimiser is fused.
        compile_from: the steps of a run from which compiling pays, which takes about half a minute; none: never by itself.
    """

    channels_last: bool
    fused: bool
    compile_from: int | None = None


# cpu and cuda from measurements of `avt bench`; mps as PyTorch's own defaults
EXECUTION_DEFAULTS: Final = {
    "cpu": ExecutionDefaults(channels_last=True, fused=True),
    "cuda": ExecutionDefaults(channels_last=True, fused=True, compile_from=10_000),
    "mps": ExecutionDefaults(channels_last=False, fused=False),
}


def resolve_execution(config: PretrainConfig, device: str, *, processes: int, steps: int, on_event: OnEvent) -> PretrainConfig:
    """Fill in the execution settings that are not stated, for device cpu, cuda or mps and a number of planned steps.

    Raises:
        AvtError: if compilation is requested where it is not possible.
    """
    defaults, missing = EXECUTION_DEFAULTS[device], what_compiling_lacks(device)
    compiled, last, optimizer = config.compile, config.channels_last, choose_fused(config.optimizer, device)
    if compiled and missing:
        raise AvtError(f"Compiling needs {missing}, which is not here: install it, or give --no-compile.")
    if compiled and config.checkpoint_activations:
        raise AvtError(
            "A compiled network does not checkpoint activations: give --no-compile, or checkpoint_activations = false."
        )
    synchronised = config.sync_bn and processes > 1
    if compiled and synchronised:
        raise AvtError("A compiled network has statistics of each process's own images: give --no-compile, or --no-sync-bn.")
    if compiled is None:
        pays = defaults.compile_from is not None and steps >= defaults.compile_from
        compiled = pays and not missing and not config.checkpoint_activations and not synchronised
    if last is None:  # Inductor chooses its own layout on a CPU, and channels-last weights slow it down
        last = defaults.channels_last and not (compiled and device == "cpu")
    able = device == "cuda" and processes == 1 and config.precision != "fp16" and not config.checkpoint_activations
    if config.capture and not (able and optimizer.fused):
        needed = "one process on a CUDA GPU, bf16 or fp32, a fused optimiser, and all activations kept"
        on_event(Notice(f"steps are not captured: that takes {needed}"))
    captured = able and bool(optimizer.fused) and config.capture is not False
    execution = {"compile": compiled, "capture": captured, "channels_last": last, "optimizer": optimizer}
    return config.model_copy(update=execution)


def choose_fused(optimizer: Optimizer, device: str) -> Optimizer:
    """Resolve `fused` for a class of device where the settings do not state it."""
    if optimizer.fused is not None:
        return optimizer
    return optimizer.model_copy(update={"fused": EXECUTION_DEFAULTS[device].fused})


def prepare_for_inference(net: Net, device: torch.device) -> Net:
    """Move a network to a device, in the memory format that training uses there."""
    net.to(device)
    if EXECUTION_DEFAULTS[device.type].channels_last:
        to_channels_last(net)
    return net


def to_channels_last(net: nn.Module) -> None:
    """Convert a network's convolutions to channels last.

    On a CPU only the first convolution, 1x1 and depthwise ones are converted. Their weights set the format of the maps; oneDNN
    reorders the others anyway, and their gradients would be converted at each step.
    """
    for index, p in enumerate(p for p in net.parameters() if p.ndim == 4):
        if p.device.type != "cpu" or not index or p.shape[1] == 1 or p.shape[2:].numel() == 1:
            p.data = p.data.to(memory_format=torch.channels_last)


def compile_network(function: Callable[P, T]) -> Callable[P, T]:
    """Compile a function of one shape of input; nothing is chosen by timing, so that a resumed run computes as before."""
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # float32 is exact where the settings say so
    return torch.compile(function, dynamic=False, options={"deterministic": True})


@contextmanager
def compile_errors_explained() -> Iterator[None]:
    """Turn what `torch.compile` raises where it fails into an `AvtError`."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise AvtError(f"The network cannot be compiled here ({one_line(error)}). Give --no-compile.") from error


def what_compiling_lacks(device: str) -> str:
    """Return what `torch.compile` needs on a class of device and does not find here; empty where it has all."""
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "cc", os.environ.get("CXX") or "c++", "gcc", "clang")):
        return "a C++ compiler (g++ or clang++)"
    return "Triton" if device == "cuda" and importlib.util.find_spec("triton") is None else ""
