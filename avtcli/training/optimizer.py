"""The optimiser of a run: its parameter groups, its rates, its state as plain tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avtcli.config.components import Optimizer, Piece
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.models.siamese import AVTModel
from avtcli.training.learning_rate import cosine_rate, piecewise_rate


def build_optimizer(config: PretrainConfig, net: AVTModel) -> torch.optim.Optimizer:
    """Two groups: everything, and the decoder's log-variance layer where the schedule gives it rates of its own."""
    own = net.log_var_head if config.schedule.log_var_pieces else None
    apart = set() if own is None else {id(p) for p in own.parameters()}
    groups = [{"params": [p for p in net.parameters() if id(p) not in apart]}]
    if own is not None:
        groups.append({"params": list(own.parameters())})
    return make_optimizer(groups, config.optimizer)


def make_optimizer(groups: list[dict[str, Any]], settings: Optimizer) -> torch.optim.Optimizer:
    """The optimiser of the settings over parameter groups; their rates are set before each step."""
    if settings.name == "sgd":
        return torch.optim.SGD(
            groups,
            lr=0.0,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
            fused=settings.fused,
        )
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=settings.weight_decay, fused=settings.fused)


def rate_of_pieces(pieces: Sequence[Piece], epoch: float) -> float:
    """The rate of a schedule in pieces at an epoch of the length it was written for."""
    return piecewise_rate(epoch, [(piece.start, piece.rate, piece.slope) for piece in pieces])


def rates_at(config: PretrainConfig, step: int, steps_per_epoch: int) -> tuple[float, float]:
    """The learning rates of a step: of the network, and of the decoder's log-variance layer.

    Pieces are constant within an epoch, as published; a cosine moves each step.
    """
    schedule = config.schedule
    epoch = (step // steps_per_epoch) * schedule.epochs / config.total_epochs
    if schedule.pieces:
        rate = rate_of_pieces(schedule.pieces, epoch)
    else:
        progress = (step + 0.5) / (steps_per_epoch * config.total_epochs)
        rate = cosine_rate(progress, peak=schedule.rate, warmup=schedule.warmup)
    own = schedule.log_var_pieces
    return rate, rate_of_pieces(own, epoch) if own else rate


def set_rates(optimizer: torch.optim.Optimizer, config: PretrainConfig, step: int, steps_per_epoch: int) -> tuple[float, float]:
    """Give each parameter group the rate of this step, and return them."""
    rates = rates_at(config, step, steps_per_epoch)
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        group["lr"] = rate
    return rates


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The state as tensors by `INDEX.NAME`, and the parameter groups as plain JSON.

    SGD's momentum buffer is none until the first step: such a slot is left out and comes back as none.
    """
    state = optimizer.state_dict()
    slots = ((index, name, value) for index, slot in state["state"].items() for name, value in slot.items())
    tensors = {f"{index}.{name}": value for index, name, value in slots if isinstance(value, Tensor)}
    return tensors, state["param_groups"]


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """Put back what `optimizer_tensors` gave."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    # a fused step walks memory, so the state must lie as its parameter does, and not as in the file
    for parameter, slot in optimizer.state.items():
        for name, value in slot.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slot[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
