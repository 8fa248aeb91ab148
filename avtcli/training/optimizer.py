"""The optimiser of a run: parameter groups, learning rates, state as plain tensors."""

from collections.abc import Sequence
from math import cos, pi
from typing import Any

import torch
from torch import Tensor

from avtcli.config.components import Optimizer, Piece, Schedule
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.models.siamese import SiameseModel


def build_optimizer(config: PretrainConfig, net: SiameseModel) -> torch.optim.Optimizer:
    """Build the optimiser: one group, and one for the decoder's log-variance layer where the schedule sets its rates."""
    layer = net.objective.log_var_layer() if config.schedule.log_var_pieces else None
    own = [] if layer is None else list(layer.parameters())
    ids = {id(p) for p in own}
    groups = [{"params": [p for p in net.parameters() if id(p) not in ids]}, *([{"params": own}] if own else [])]
    optimizer = make_optimizer(groups, config.optimizer)
    if config.optimizer.name == "sgd" and config.optimizer.momentum:
        # from zeros, as the first step would make it: a first step that is skipped would leave memory that nobody filled
        for parameter in filter(lambda p: p.requires_grad, net.parameters()):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def make_optimizer(groups: list[dict[str, Any]], settings: Optimizer) -> torch.optim.Optimizer:
    """Build an optimiser over parameter groups; their rates are set before each step."""
    common: dict[str, Any] = {"lr": 0.0, "weight_decay": settings.weight_decay, "fused": settings.fused}
    if settings.name == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov, **common)
    optimizer = torch.optim.AdamW(groups, **common)
    optimizer.__dict__["_warned_capturable_if_run_uncaptured"] = True  # as the steps before a capture are
    return optimizer


def piecewise_rate(pieces: Sequence[Piece], epoch: float) -> float:
    """Return the rate of a schedule that is constant or linear in pieces; the epoch is one of the schedule's length."""
    piece = next(piece for piece in reversed(pieces) if piece.start <= epoch)
    return piece.rate + piece.slope * (epoch - piece.start)


def cosine_rate(progress: float, *, peak: float, warmup: float) -> float:
    """Return the rate of a linear rise to the peak, then half a cosine down to 0; progress and warmup are shares of the run."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + cos(pi * (progress - warmup) / (1 - warmup)))


def scheduled_rate(schedule: Schedule, *, epoch: float, progress: float) -> float:
    """Return the rate of a schedule: pieces are constant within an epoch, as published; a cosine moves each step."""
    if schedule.pieces:
        return piecewise_rate(schedule.pieces, epoch)
    return cosine_rate(progress, peak=schedule.rate, warmup=schedule.warmup)


def rates_at(config: PretrainConfig, step: int, steps_per_epoch: int) -> tuple[float, float]:
    """Return the learning rates of a step: of the network, and of the decoder's log-variance layer."""
    schedule = config.schedule
    epoch = (step // steps_per_epoch) * schedule.epochs / config.total_epochs
    rate = scheduled_rate(schedule, epoch=epoch, progress=(step + 0.5) / (steps_per_epoch * config.total_epochs))
    return rate, piecewise_rate(schedule.log_var_pieces, epoch) if schedule.log_var_pieces else rate


def set_rates(optimizer: torch.optim.Optimizer, config: PretrainConfig, step: int, steps_per_epoch: int) -> float:
    """Set the rate of each parameter group for a step, and return that of the network."""
    rates = rates_at(config, step, steps_per_epoch)
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    return rates[0]


def rates_to_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep the rates on a CUDA device, where a captured step reads them."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=device)
        if "capturable" in group:
            group["capturable"] = True


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the state as tensors by `INDEX.NAME`, and the parameter groups as plain JSON."""
    state = optimizer.state_dict()
    slots = ((index, name, value) for index, slot in state["state"].items() for name, value in slot.items())
    tensors = {f"{index}.{name}": value for index, name, value in slots if isinstance(value, Tensor)}
    return tensors, [{k: float(v) if isinstance(v, Tensor) else v for k, v in group.items()} for group in state["param_groups"]]


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """Restore what `optimizer_tensors` returned."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    # how it is computed is a matter of the device
    pairs = zip(groups, optimizer.param_groups, strict=True)
    groups = [given | {name: own[name] for name in ("fused", "capturable") if name in own} for given, own in pairs]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    # a fused step walks memory, so the state must lie as its parameter does, and not as in the file
    for parameter, slot in optimizer.state.items():
        for name, value in slot.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slot[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
