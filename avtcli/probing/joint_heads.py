"""Heads that are trained side by side on the same batches; linear ones in a few large matrix products."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli.features.feature_reader import Feature, FeatureReader
from avtcli.probing.head import TrainedHead
from avtcli.probing.heads._layers import LinearHead
from avtcli.seeding import seed_of

Position = tuple[int, int]
"""Where a head's feature is in a batch: the index of its stack, and its index in the stack."""


@dataclass(frozen=True)
class HeadSpec:
    """A head to train: its feature, and the peak of its cosine; none for the rates of the schedule."""

    feature: Feature
    peak: float | None


class Heads(ABC):
    """Heads on the features of a reader; their parameters are in the order of the specs."""

    parameters: list[list[nn.Parameter]]

    @abstractmethod
    def logits(self, stacks: Sequence[Tensor], *, training: bool) -> list[Tensor]:
        """Logits of each head, (classes, B), in the order of the specs; for `stacks` see `FeatureReader.read_batches`.

        In training, a batch is normalised by its own statistics, which update the running ones; else by those.
        """


class SeparateHeads(Heads):
    """Heads that are computed one after the other."""

    def __init__(self, heads: Sequence[nn.Module], positions: Sequence[Position]) -> None:
        self.heads, self.positions = heads, positions
        self.parameters = [list(head.parameters()) for head in heads]

    def logits(self, stacks: Sequence[Tensor], *, training: bool) -> list[Tensor]:
        """Call each head; see `Heads`."""
        pairs = zip(self.heads, self.positions, strict=True)
        return [head.train(training)(stacks[stack][:, feature]).T for head, (stack, feature) in pairs]


class JointLinearHeads(Heads):
    """`LinearHead`s that share batches: those on features of one shape in one matrix product.

    The normalisation is applied to the few weights instead of the features: W (x - mean) scale + b
    = (W scale) x + (b - W scale mean), with scale = (var + eps)^-1/2. A channel whose mean is hundreds of standard deviations
    costs logits and gradients two digits. The heads' weights are copied; each feature of a stack has the same number of heads.
    """

    def __init__(self, heads: Sequence[LinearHead], positions: Sequence[Position]) -> None:
        norms = {position: head.norm for head, position in zip(heads, positions, strict=True)}
        self.parameters = []
        for head in heads:
            weight = head.linear.weight.detach().view(len(head.linear.weight), head.norm.num_features, -1).mT
            weight = weight.clone(memory_format=torch.contiguous_format)  # channels last, as the features are in memory
            self.parameters.append([nn.Parameter(weight), nn.Parameter(head.linear.bias.detach().clone())])
        order = sorted(range(len(heads)), key=lambda i: positions[i])
        self.members = {stack: [i for i in order if positions[i][0] == stack] for stack, _ in norms}
        self.statistics = {
            stack: _RunningStatistics([norms[position] for position in sorted(norms) if position[0] == stack])
            for stack in self.members
        }

    def logits(self, stacks: Sequence[Tensor], *, training: bool) -> list[Tensor]:
        """Multiply features and scaled weights; see `Heads`."""
        logits = [torch.empty(0)] * len(self.parameters)
        for stack, members in self.members.items():
            cells = stacks[stack].reshape(*stacks[stack].shape[:3], -1).mT  # (B, features, cells, C)
            features = cells.shape[1]
            mean, scale = (x[:, None, None] for x in self.statistics[stack].of_batch(cells, training=training))
            weight = torch.stack([self.parameters[i][0] for i in members])
            bias = torch.stack([self.parameters[i][1] for i in members]).view(features, -1, 1)
            scaled = (weight.view(features, -1, *weight.shape[2:]) * scale).flatten(2)
            means = mean.expand(-1, 1, cells.shape[2], -1).flatten(2)
            joint = torch.baddbmm(bias - scaled @ means.mT, scaled, cells.flatten(2).permute(1, 2, 0))
            for i, own in zip(members, joint.view(len(members), -1, len(cells)), strict=True):
                logits[i] = own
        return logits


class _RunningStatistics:
    """Mean and variance of `BatchNorm`s without affine parameters, one for each feature of a stack: (features, C) each."""

    def __init__(self, norms: Sequence[nn.BatchNorm1d | nn.BatchNorm2d]) -> None:
        assert norms[0].momentum is not None
        self.eps, self.momentum = norms[0].eps, norms[0].momentum
        self.mean, self.var = (
            torch.stack([norm.get_buffer(name) for norm in norms]) for name in ("running_mean", "running_var")
        )

    def of_batch(self, x: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
        """Mean and (var + eps)^-1/2 of each channel of (B, features, cells, C), (features, C) each; see `Heads.logits`."""
        mean, var = self.mean, self.var
        if training:
            count, parts = x.shape[0] * x.shape[2], x.unbind(1) if x.device.type == "cpu" else [x]  # one fits a CPU's cache
            mean, var = (torch.stack(own).view_as(mean) for own in zip(*map(_moments, parts), strict=True))
            self.mean.lerp_(mean, self.momentum)
            self.var.lerp_(var * (count / (count - 1)), self.momentum)
        return mean, (var + self.eps).rsqrt()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(-2).mean(0)
    return mean, (x - mean.unsqueeze(-2)).square_().mean(-2).mean(0)


def fit_batch(heads: Heads, stacks: Sequence[Tensor], labels: Tensor) -> None:
    """Compute the gradients of each head's mean cross-entropy on a batch of two images at least; labels (B,) int64."""
    logits = torch.stack(heads.logits(stacks, training=True))
    logits.register_hook(flush_denormals)  # type: ignore[no-untyped-call]
    loss = functional.cross_entropy(logits, labels.expand(len(logits), -1), reduction="sum") / len(labels)
    loss.backward()  # type: ignore[no-untyped-call]


def flush_denormals(gradient: Tensor) -> Tensor:
    """Set to zero what is below float32's precision for any weight; a CPU multiplies denormal numbers very slowly."""
    return functional.hardshrink(gradient, 1e-30)


def start_heads(
    specs: Sequence[HeadSpec], reader: FeatureReader, head: TrainedHead, *, classes: int, seed: int, tuned: bool
) -> Heads:
    """Build heads on the device of the features, all with the weights of one seed.

    Each feature of the reader has the same number of linear heads. Where the encoder is `tuned` too, linear layers start as in
    PyTorch: the release's weights are so large that the first steps would destroy the encoder's.
    """
    modules: list[nn.Module] = []
    for spec in specs:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(seed, "head"))
            module = head.build(spec.feature.layer, reader.shapes[spec.feature], classes)
            for layer in (m for m in module.modules() if tuned and isinstance(m, nn.Linear)):
                layer.reset_parameters()
        modules.append(module.to(reader.labels.device))
    where = {f: (i, j) for i, stack in enumerate(reader.stacks) for j, f in enumerate(stack)}
    positions = [where[spec.feature] for spec in specs]
    linear = [module for module in modules if isinstance(module, LinearHead)]
    return JointLinearHeads(linear, positions) if len(linear) == len(specs) and not tuned else SeparateHeads(modules, positions)
