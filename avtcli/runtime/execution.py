"""Execution settings of each class of device: memory layout, fused optimiser, compilation."""

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
    """Defaults of one class of device: channels-last memory format, see `to_channels_last`, and fused optimiser."""

    channels_last: bool
    fused: bool


# cpu from measurements of `avt bench`; cuda as PyTorch's guides advise for tensor cores; mps as PyTorch's own defaults
EXECUTION_DEFAULTS: Final = {
    "cpu": ExecutionDefaults(channels_last=True, fused=True),
    "cuda": ExecutionDefaults(channels_last=True, fused=True),
    "mps": ExecutionDefaults(channels_last=False, fused=False),
}


def resolve_execution(config: PretrainConfig, device: str) -> PretrainConfig:
    """Fill in the execution settings that are not stated, for device cpu, cuda or mps; compilation is off unless requested."""
    if config.compile and device == "cpu" and not _has_compiler():
        raise AvtError("--compile needs a C++ compiler, and there is no g++ or clang++ here: install one, or leave it out.")
    compiled, last = bool(config.compile), config.channels_last
    if last is None:  # Inductor chooses its own layout on a CPU, and channels-last weights slow it down
        last = EXECUTION_DEFAULTS[device].channels_last and not (compiled and device == "cpu")
    optimizer = choose_fused(config.optimizer, device)
    return config.model_copy(update={"compile": compiled, "channels_last": last, "optimizer": optimizer})


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


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++"))
