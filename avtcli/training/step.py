"""One training step, as the loop takes it and the benchmark measures it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avtcli.contracts import Loss, Role, Target
from avtcli.data.training_loader import Batch
from avtcli.models.siamese import SiameseModel
from avtcli.runtime.devices import seed_model
from avtcli.runtime.processes import gather_batch
from avtcli.seeding import keyed_generator, seed_of
from avtcli.training.optimizer import set_rates
from avtcli.training.training_setup import TrainingSetup

Noise = Callable[[int, int], list[Tensor | None]]
"""The noise of each view's code at a step, given the samples of all processes; none where the code has none."""

NOISE_KEYS: dict[Role, str] = {"original": "original", "transformed": "moved"}
"""Names of the random streams: part of what a seed stands for, so that they never change."""


def build_noise(setup: TrainingSetup) -> Noise:
    """Build the source of this process's noise: its rows of the whole batch's, whatever the number of processes."""
    accelerator, spec, roles = setup.accelerator, setup.spec, setup.net.objective.views
    shape = setup.net.encoder.code_shape(spec.channels, setup.size) if spec.noise_scale else None
    repeats = [roles[:place].count(role) for place, role in enumerate(roles)]
    keys = [NOISE_KEYS[role] + (f" {repeat}" if repeat else "") for role, repeat in zip(roles, repeats, strict=True)]

    def sample(step: int, key: str, count: int) -> Tensor | None:
        if shape is None:
            return None
        generator = keyed_generator(setup.config.seed, step, "noise", key, device=accelerator.device)
        noise = torch.randn(count, *shape, generator=generator, device=accelerator.device)
        return noise[accelerator.process_index :: accelerator.num_processes]

    return lambda step, count: [sample(step, key, count) for key in keys]


class LossModule(nn.Module):
    """What several processes train together: from the views of a batch to the losses of this process's samples.

    `compiled` says whether full batches are encoded by a compiled network; the objective stays eager.
    """

    def __init__(self, net: SiameseModel, *, compiled: bool, rank: int, world: int) -> None:
        super().__init__()
        self.net, self.rank, self.world = net, rank, world
        self._encode = torch.compile(net.encode, dynamic=False) if compiled else net.encode

    def forward(self, batch: Batch, noise: Sequence[Tensor | None], *, full: bool) -> Loss:
        """Compute the loss of each sample of this process, (B,); a batch that is not full is never compiled."""
        encode = self._encode if full else self.net.encode
        codes, targets = encode(batch.views, noise), batch.targets
        if not self.net.objective.depends_on_batch or self.world == 1:
            return self.net.loss(codes, targets)
        codes = tuple(gather_batch(code, batch.count) for code in codes)
        loss = self.net.loss(codes, [self._gathered(target, batch.count) for target in targets])
        own = slice(self.rank, None, self.world)
        return Loss(loss.per_sample[own], {name: part[own] for name, part in loss.parts.items()})

    @staticmethod
    def _gathered(target: Target, count: int) -> Target:
        values, parameters = gather_batch(target.values, count), gather_batch(target.parameters, count)
        return Target(values, parameters, target.family, target.size)


@dataclass(frozen=True)
class StepResult:
    """The result of a step: its losses, and whether it was skipped.

    Attributes:
        loss: of each sample of this process, before the step.
        rates: learning rates of the network and of the decoder's log-variance layer.
        skipped: on the device, whether loss or gradient was not finite, in any process.
    """

    loss: Loss
    rates: tuple[float, float]
    skipped: Tensor


class Trainer:
    """Trains the network of a run one batch at a time; its `optimizer` is the given one, with the loss scaling of fp16.

    A step whose loss or gradient is not finite changes nothing: weights, optimiser and buffers stay as they were, in every
    process alike. Fused optimisers decide that on the device, so that the host need not wait for it. In fp16 the loss alone
    counts: a gradient that overflows asks for another scale of the loss, which skips the weights and is no failure.
    """

    def __init__(self, setup: TrainingSetup, optimizer: torch.optim.Optimizer) -> None:
        accelerator, compiled = setup.accelerator, bool(setup.config.compile)
        self._setup, self._noise = setup, build_noise(setup)
        rank, world = accelerator.process_index, accelerator.num_processes
        self._module = accelerator.prepare(LossModule(setup.net, compiled=compiled, rank=rank, world=world)).train()
        self.optimizer = optimizer if accelerator.scaler is None else accelerator.prepare(optimizer)
        self._buffers = list(setup.net.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]

    def step(self, step: int, batch: Batch) -> StepResult:
        """Take a step; learning rates, noise and dropout follow from its number, counted from 0."""
        setup, accelerator, count = self._setup, self._setup.accelerator, batch.count
        rates = set_rates(self.optimizer, setup.config, step, setup.steps_per_epoch)
        seed_model(seed_of(setup.config.seed, step, "model", accelerator.process_index), accelerator.device)
        torch._foreach_copy_(self._before, self._buffers)
        loss: Loss = self._module(batch, self._noise(step, count), full=count == setup.config.batch_size)
        accelerator.backward(loss.per_sample.sum() * (accelerator.num_processes / count))
        skipped = self._is_not_finite(loss)
        self._update(skipped)
        kept = [torch.where(skipped, *pair) for pair in zip(self._before, self._buffers, strict=True)]
        torch._foreach_copy_(self._buffers, kept)
        self.optimizer.zero_grad()
        return StepResult(loss, rates, skipped)

    @torch.no_grad()
    def _is_not_finite(self, loss: Loss) -> Tensor:
        """Whether the loss of any process or the gradient, which all processes share, is not finite; a truth value."""
        finite = loss.per_sample.isfinite().all()
        if self._setup.accelerator.scaler is None:  # with it, a gradient that overflows asks for another scale
            gradients = [p.grad for p in self._setup.net.parameters() if p.grad is not None]
            finite = finite & torch.nn.utils.get_total_norm(gradients, math.inf).isfinite()
        if self._setup.accelerator.num_processes > 1:
            everywhere = finite.int()
            torch.distributed.all_reduce(everywhere, op=torch.distributed.ReduceOp.MIN)
            finite = everywhere.bool()
        return ~finite

    def _update(self, skipped: Tensor) -> None:
        """Change the weights, unless the step is skipped."""
        if self._setup.accelerator.scaler is not None:  # it looks for gradients that are not finite itself
            self.optimizer.step()
        elif self._setup.config.optimizer.fused:
            setattr(self.optimizer, "found_inf", skipped.float())  # noqa: B010 - how GradScaler tells fused optimisers
            self.optimizer.step()
        elif not skipped:
            self.optimizer.step()
