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

from avtcli.config import Optimizer, PretrainConfig
from avtcli.errors import AvtError

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Ways:
    """What a class of device is fastest with.

    Attributes:
        channels_last: whether the weights and maps of convolutions lie channels last.
        fused: whether the optimiser walks each parameter once.
        compile_from: the planned steps from which compiling pays for its minutes; none where it does not.
    """

    channels_last: bool
    fused: bool
    compile_from: int | None


WAYS: Final = {
    # Two x86 cores with AVX-512 and AMX, torch 2.15, in turn, medians of the ratio to eager contiguous steps at 32 px. Channels
    # last: NIN 1.17 at width 1 and 1.31 at width 0.25, MobileNetV3 1.95, ConvNeXt 1.08, AlexNet at 224 px 1.07, ResNet-18 0.90
    # to 0.95 (maps of one cell under 11 M weights). Fused: SGD on AlexNet's 61 M parameters 6 times as fast, 1.01 of a NIN's
    # step. Compiled, contiguous: 1.09 (1.06 to 1.10) after a minute of compiling, and so behind channels last. bf16: NIN 1.9
    # (1.3 to 1.45 at width 0.25), AlexNet 1.6, ResNet-18 0.9; never chosen on a CPU, where the same settings would then give
    # other numbers on one that has not AMX.
    "cpu": Ways(channels_last=True, fused=True, compile_from=None),
    # Not measured on a GPU: what PyTorch's own guides advise for convolutions on tensor cores. Compiling is left to --compile.
    "cuda": Ways(channels_last=True, fused=True, compile_from=None),
    # Not measured: PyTorch's defaults.
    "mps": Ways(channels_last=False, fused=False, compile_from=None),
}


def resolve_ways(config: PretrainConfig, device: str, *, steps: int) -> PretrainConfig:
    """Settle what the settings leave open for a class of device.

    Args:
        config: the settings; what they state stays.
        device: cpu, cuda or mps.
        steps: that the run is going to take.

    Raises:
        AvtError: if compiling is asked for on a CPU and there is no C++ compiler.
    """
    ways = WAYS[device]
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
    return optimizer if optimizer.fused is not None else optimizer.model_copy(update={"fused": WAYS[device].fused})


def place(net: Net, device: torch.device) -> Net:
    """Send a network that is only read to a device, laid out as that is fastest: on its class of device as in training."""
    moved = net.to(device)
    return moved.to(memory_format=torch.channels_last) if WAYS[device.type].channels_last else moved


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++"))
