"""How networks are computed on each class of device: from a table of what was measured, never timed inside a run.

What is chosen is written into config.toml and kept on resumption, since each way rounds in its own last bits. `avt bench`
measures the same on any machine.
"""

import os
import shutil
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import nn

from avtcli.config.components import Optimizer
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.errors import AvtError

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class ExecutionDefaults:
    """What a class of device is fastest with.

    Attributes:
        channels_last: whether the maps of convolutions lie channels last; see `to_channels_last`.
        fused: whether the optimiser walks each parameter once.
        compile_from: the planned steps from which compiling pays for its minutes; none where it does not.
    """

    channels_last: bool
    fused: bool
    compile_from: int | None


EXECUTION_DEFAULTS: Final = {
    # Medians of the ratio to eager contiguous steps of 32 pairs of 32 px, in turn, on two x86 cores with AVX-512 and bf16 (no
    # AMX), torch 2.14. Channels last and fused: NIN 1.24 at width 1 and 1.44 at width 0.25, MobileNetV3 1.8, ConvNeXt 1.12,
    # AlexNet at 224 px 1.17, ResNet-18 1.06. Compiled: NIN 1.10, after a minute of compiling: oneDNN's convolutions alone take
    # 200 of the plain step's 320 ms, and inductor's normalisation in between is slower than eager's. Two others with AMX and
    # torch 2.15 gave 1.17, 1.31, 1.95, 1.08 and 1.07, and compiled 1.09. bf16: NIN 2.2, AlexNet 2.2, ResNet-18 1.1, with AMX
    # 2.15, 1.9 and 0.7; never chosen on a CPU, where the same settings would then give other numbers on one that has it not.
    "cpu": ExecutionDefaults(channels_last=True, fused=True, compile_from=None),
    # Not measured on a GPU: what PyTorch's own guides advise for convolutions on tensor cores. Compiling is left to --compile.
    "cuda": ExecutionDefaults(channels_last=True, fused=True, compile_from=None),
    # Not measured: PyTorch's defaults.
    "mps": ExecutionDefaults(channels_last=False, fused=False, compile_from=None),
}


def resolve_execution(config: PretrainConfig, device: str, *, steps: int) -> PretrainConfig:
    """Settle what the settings leave open for a class of device.

    Args:
        config: the settings; what they state stays.
        device: cpu, cuda or mps.
        steps: that the run is going to take.

    Raises:
        AvtError: if compiling is asked for on a CPU and there is no C++ compiler.
    """
    ways = EXECUTION_DEFAULTS[device]
    can = device != "cpu" or _has_compiler()
    if config.compile and not can:
        raise AvtError("--compile needs a C++ compiler, and there is no g++ or clang++ here: install one, or leave it out.")
    pays = ways.compile_from is not None and steps >= ways.compile_from
    compiled = can and pays if config.compile is None else config.compile
    # Inductor lays out its own code for a CPU better from contiguous weights: with both it was slower than eager
    last = ways.channels_last and not (compiled and device == "cpu")
    return config.model_copy(
        update={
            "compile": compiled,
            "channels_last": last if config.channels_last is None else config.channels_last,
            "optimizer": choose_fused(config.optimizer, device),
        }
    )


def choose_fused(optimizer: Optimizer, device: str) -> Optimizer:
    """Settle whether the optimiser walks each parameter once, where its settings leave that open."""
    return (
        optimizer if optimizer.fused is not None else optimizer.model_copy(update={"fused": EXECUTION_DEFAULTS[device].fused})
    )


def prepare_for_inference(net: Net, device: torch.device) -> Net:
    """Send a network that is only read to a device, laid out as that is fastest: on its class of device as in training."""
    on_device = net.to(device)
    if EXECUTION_DEFAULTS[device.type].channels_last:
        to_channels_last(on_device)
    return on_device


def to_channels_last(net: nn.Module) -> None:
    """Make the maps of a network lie channels last, by the layout of its convolutions' weights.

    The first weight says so, and those of one cell or of one channel a group do without a copy. On a CPU the others stay as
    they are: oneDNN brings them to a layout of its own anyway, and their gradients would have to be turned at each step, which
    was a seventh of the step of a ResNet-18 at 32 px, most of whose weights see maps of one cell.
    """
    net.to(memory_format=torch.channels_last)
    for p in [p for p in net.parameters() if p.ndim == 4][1:]:
        if p.device.type == "cpu" and p.shape[1] > 1 and p.shape[2:].numel() > 1:
            p.data = p.data.contiguous()


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++"))
