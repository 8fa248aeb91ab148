"""One training step, as the loop takes it and the benchmark measures it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from avtcli.contracts import Role, Target
from avtcli.data.training_loader import Batch
from avtcli.events import OnEvent, ignore
from avtcli.models.siamese import SiameseModel
from avtcli.runtime.capture import CapturedCalls
from avtcli.runtime.devices import float32_products, seed_model
from avtcli.runtime.execution import compile_errors_explained, compile_network
from avtcli.seeding import seed_of
from avtcli.training.optimizer import rates_to_device, set_rates
from avtcli.training.training_setup import TrainingSetup

Noise = Callable[[int, int], list[Tensor | None]]
"""The noise of each view's code at a step, given the samples of all processes; none where the code has none."""

Encode = Callable[[Sequence[Tensor], Sequence[Tensor | None]], tuple[Tensor, ...]]
"""From views and their noise to vectors; see `SiameseModel.encode`."""

NOISE_KEYS: dict[Role, str] = {"original": "original", "transformed": "moved"}
"""Names of the random streams: part of what a seed stands for, so that they never change."""


def build_noise(setup: TrainingSetup) -> Noise:
    """Build the source of this process's noise: its rows of the whole batch's, whatever the number of processes."""
    accelerator, spec, roles = setup.accelerator, setup.spec, setup.net.objective.views
    shape = setup.net.encoder.code_shape(spec.channels, setup.size) if spec.noise_scale else None
    repeats = [roles[:place].count(role) for place, role in enumerate(roles)]
    keys = [NOISE_KEYS[role] + (f" {repeat}" if repeat else "") for role, repeat in zip(roles, repeats, strict=True)]
    generator = torch.Generator(accelerator.device)

    def sample(step: int, key: str, count: int) -> Tensor | None:
        if shape is None:
            return None
        generator.manual_seed(seed_of(setup.config.seed, step, "noise", key))
        noise = torch.randn(count, *shape, generator=generator, device=accelerator.device)
        return noise[accelerator.process_index :: accelerator.num_processes]

    return lambda step, count: [sample(step, key, count) for key in keys]


def gather_batch(rows: Tensor, count: int) -> Tensor:
    """Gather the rows of all processes in the order of the whole batch; gradients flow back to each process's own rows.

    Process r of W holds the rows r, r + W, r + 2 W and so on, (B, ...), of the `count` rows of the batch.
    """
    from torch.distributed.nn.functional import all_gather

    most = -(-count // torch.distributed.get_world_size())
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])]) if len(rows) < most else rows
    parts = all_gather(padded.contiguous())  # type: ignore[no-untyped-call]
    return torch.stack(list(parts), 1).flatten(0, 1)[:count]


class LossModule(nn.Module):
    """What several processes train together: from the views of a batch to the losses of this process's samples.

    `encode` encodes the views of full batches: `net.encode`, or its compiled form; the objective stays eager.
    """

    def __init__(self, net: SiameseModel, encode: Encode, *, rank: int, world: int) -> None:
        super().__init__()
        self.net, self.rank, self.world = net, rank, world
        self._encode = encode

    def forward(self, batch: Batch, noise: Sequence[Tensor | None], *, full: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each sample of this process, (B,), and its parts; a batch that is not full is never compiled.

        Plain containers: DistributedDataParallel finds no tensor in others, and would leave gradients unreduced.
        """
        encode = self._encode if full else self.net.encode
        codes, targets = encode(batch.views, noise), batch.targets
        if not self.net.objective.depends_on_batch or self.world == 1:
            loss = self.net.loss(codes, targets)
            return loss.per_sample, dict(loss.parts)
        codes = tuple(gather_batch(code, batch.count) for code in codes)
        loss = self.net.loss(codes, [self._gathered(target, batch.count) for target in targets])
        own = slice(self.rank, None, self.world)
        return loss.per_sample[own], {name: part[own] for name, part in loss.parts.items()}

    @staticmethod
    def _gathered(target: Target, count: int) -> Target:
        values, parameters = gather_batch(target.values, count), gather_batch(target.parameters, count)
        return Target(values, parameters, target.family, target.size)


@dataclass(frozen=True)
class StepResult:
    """The result of a step.

    Attributes:
        figures: on the device, by `names`, means over the samples of all processes: this process's share of them, float32.
        names: "loss", before the step, the parts of the loss, and "skipped": 1 where the step changed nothing, everywhere.
        rate: learning rate of the network.
    """

    figures: Tensor
    names: tuple[str, ...]
    rate: float

    @property
    def skipped(self) -> Tensor:
        """Whether the step changed nothing: not 0, on the device."""
        return self.figures[-1]


class Trainer:
    """Trains the network of a run one batch at a time; its `optimizer` is the given one, with the loss scaling of fp16.

    A step whose loss or gradient is not finite changes nothing: weights, optimiser and buffers stay as they were, in every
    process alike. Fused optimisers decide that on the device, so that the host need not wait for it. In fp16 the loss alone
    counts: a gradient that overflows asks for another scale of the loss, which skips the weights and is no failure.

    Where a step is captured, its graph is that of a full batch: forward, loss, backward and optimiser. Noise is drawn before
    it, as a graph would need one generator for each view.
    """

    def __init__(self, setup: TrainingSetup, optimizer: torch.optim.Optimizer, *, on_event: OnEvent = ignore) -> None:
        accelerator, config, encode = setup.accelerator, setup.config, setup.net.encode
        if config.compile:
            encode = compile_network(encode)
        self._setup, self._noise = setup, build_noise(setup)
        module = LossModule(setup.net, encode, rank=accelerator.process_index, world=accelerator.num_processes)
        self._module = accelerator.prepare(module).train()
        self._captured = CapturedCalls[tuple[tuple[str, ...], Tensor]](
            accelerator.device, enabled=bool(config.capture), name="the training step", on_event=on_event
        )
        if config.capture:
            rates_to_device(optimizer, accelerator.device)
        self.optimizer = optimizer if accelerator.scaler is None else accelerator.prepare(optimizer)
        kinds = {buffer.dtype for buffer in setup.net.buffers()}
        self._buffers = [[buffer for buffer in setup.net.buffers() if buffer.dtype == kind] for kind in sorted(kinds, key=str)]

    def step(self, step: int, batch: Batch) -> StepResult:
        """Take a step; learning rates, noise and dropout follow from its number, counted from 0."""
        setup, device = self._setup, self._setup.accelerator.device
        rate = set_rates(self.optimizer, setup.config, step, setup.steps_per_epoch)
        seed_model(seed_of(setup.config.seed, step, "model", setup.accelerator.process_index), device)
        noise, full = self._noise(step, batch.count), batch.count == setup.config.batch_size
        work = partial(self._work, batch, noise, full=full)
        inputs = [*batch.tensors, *(eps for eps in noise if eps is not None)]
        names, figures = self._captured(inputs, work) if full else work()
        return StepResult(figures.clone(), names, rate)

    def _work(self, batch: Batch, noise: Sequence[Tensor | None], *, full: bool) -> tuple[tuple[str, ...], Tensor]:
        accelerator, count = self._setup.accelerator, batch.count
        self.optimizer.zero_grad()
        before = [_in_one_piece(buffers) for buffers in self._buffers]
        with float32_products(reduced=accelerator.mixed_precision != "no"), compile_errors_explained():
            per_sample, parts = self._module(batch, noise, full=full)
            accelerator.backward(per_sample.sum() * (accelerator.num_processes / count))
        skipped = self._is_not_finite(per_sample)
        self._update(skipped)
        for buffers, own in zip(self._buffers, before, strict=True):
            kept = torch.split(torch.where(skipped, own, _in_one_piece(buffers)), [buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(kept, buffers, strict=True)])
        parts = {"loss": per_sample, **parts}
        figures = [part.detach().float().sum() / count for part in parts.values()]
        return (*parts, "skipped"), torch.stack([*figures, skipped.float()])

    @torch.no_grad()
    def _is_not_finite(self, per_sample: Tensor) -> Tensor:
        """Whether the loss of any process or the gradient, which all processes share, is not finite; a truth value."""
        finite = per_sample.isfinite().all()
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


def _in_one_piece(buffers: Sequence[Tensor]) -> Tensor:
    """Copy buffers of one type into a vector: few kernels on a GPU."""
    return torch.cat([buffer.reshape(-1) for buffer in buffers])
