"""Many linear heads at once: the same as one by one, in a few large products instead of many small ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli.probing.head_modules import LinearHead

Statistics = tuple[Tensor, Tensor]
"""Mean and variance of each channel of each feature in turn, (channels,) each."""


@dataclass(frozen=True)
class _Part:
    """The heads on one stack of features: their weights and the gradients, and where they are among all."""

    weight: Tensor  # (features, heads x classes, cells, channels): the channels last, as the features lie
    gradient: Tensor
    heads: slice
    channels: slice


class LinearHeads:
    """Several `LinearHead`s on each of several features, each with weights and a rate of its own.

    Features come in stacks, those of one shape together: (B, features, *shape). What normalisation does to a batch is done to
    the few weights instead, so that no normalised copy of the features is made. A channel whose mean is hundreds of deviations
    costs the logits and the gradients two digits.

    Args:
        stacks: for each stack for each feature its heads, as many for each feature of a stack, all for the same classes; they
            are not changed.

    Attributes:
        parameters: of each stack, feature and head in turn (weight, bias), to be given to an optimiser. They share memory with
            what the products read and write.
    """

    def __init__(self, stacks: Sequence[Sequence[Sequence[LinearHead]]]) -> None:
        norm = stacks[0][0][0].norm
        assert norm.momentum is not None
        self.eps, self.momentum = norm.eps, norm.momentum
        # of the channels of each feature in turn
        self.running_mean, self.running_var = (
            torch.cat([getattr(mine[0].norm, name) for stack in stacks for mine in stack])
            for name in ("running_mean", "running_var")
        )
        self._bias = torch.stack([head.linear.bias.detach() for stack in stacks for mine in stack for head in mine])
        self._bias_gradient = torch.empty_like(self._bias)
        self._cells = torch.empty_like(self.running_mean)  # that share a channel's statistics
        self._parts: list[_Part] = []
        self.parameters: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._pairs: list[tuple[nn.Parameter, Tensor]] = []  # each parameter and its gradient
        heads = channels = 0
        for stack in stacks:
            weight = _joined_weights(stack)
            features, _, cells, depth = weight.shape
            mine = slice(heads, heads := heads + sum(map(len, stack)))
            part = _Part(weight, torch.empty_like(weight), mine, slice(channels, channels := channels + features * depth))
            self._cells[part.channels] = cells
            self._parts.append(part)
            weights, of_weights = (w.view(-1, self._bias.shape[1], cells * depth) for w in (part.weight, part.gradient))
            of_heads = zip(weights, self._bias[mine], of_weights, self._bias_gradient[mine], strict=True)
            for of_head, bias, weight_gradient, bias_gradient in of_heads:
                parameters = nn.Parameter(of_head), nn.Parameter(bias)
                self.parameters.append(parameters)
                self._pairs += zip(parameters, (weight_gradient, bias_gradient), strict=True)

    @torch.no_grad()
    def __call__(self, stacks: Sequence[Tensor]) -> Tensor:
        """Features, normalised by the running statistics, give logits (heads, classes, B)."""
        return self._logits(_flat(stacks), self.running_mean, (self.running_var + self.eps).rsqrt())

    @torch.no_grad()
    def fit_batch(self, stacks: Sequence[Tensor], statistics: Statistics, labels: Tensor) -> None:
        """Leave the parameters the gradients of their heads' mean cross-entropies on a batch, in place of earlier ones.

        The batch is normalised by its own statistics, which are added to the running ones. Where g = (softmax - one-hot) / B is
        the gradient of the logits W (x - mean) rate + b, that of W is (g'x - sum(g)' mean) rate.

        Args:
            stacks: the features, of two images at least.
            statistics: theirs, from `ChannelMoments`.
            labels: (B,) int64.
        """
        flat, count, (mean, var) = _flat(stacks), len(labels), statistics
        many = count * self._cells
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (many / (many - 1)), self.momentum)
        rate = (var + self.eps).rsqrt()
        signal = self._logits(flat, mean, rate).softmax(1)
        signal.scatter_add_(1, labels.expand(len(signal), 1, -1), signal.new_full((), -1).expand(len(signal), 1, count))
        signal = flush_denormals(signal.div_(count))
        torch.sum(signal, 2, out=self._bias_gradient)
        for x, part in zip(flat, self._parts, strict=True):
            features, outputs, _, channels = part.weight.shape
            mine = signal[part.heads].view(features, outputs, count)
            torch.bmm(mine, x.transpose(0, 1), out=part.gradient.view(features, outputs, -1))
            total = self._bias_gradient[part.heads].view(features, outputs, 1)
            shift = total * mean[part.channels].view(features, 1, channels)
            part.gradient.sub_(shift.unsqueeze(2)).mul_(rate[part.channels].view(features, 1, 1, channels))
        for parameter, gradient in self._pairs:
            parameter.grad = gradient

    def _logits(self, flat: Sequence[Tensor], mean: Tensor, rate: Tensor) -> Tensor:
        """W (x - mean) rate + b for each stack's x (B, features, cells x channels), mean and rate of each channel."""
        logits = self._bias.new_empty(*self._bias.shape, len(flat[0]))
        for x, part in zip(flat, self._parts, strict=True):
            features, outputs, cells, channels = part.weight.shape
            weight = (part.weight * rate[part.channels].view(features, 1, 1, channels)).flatten(2).mT
            middle = mean[part.channels].view(features, 1, 1, channels).expand(features, 1, cells, channels).flatten(2)
            offset = self._bias[part.heads].view(features, outputs, 1) - torch.bmm(middle, weight).mT
            torch.baddbmm(offset, weight.mT, x.permute(1, 2, 0), out=logits[part.heads].view(features, outputs, -1))
        return logits


@dataclass(frozen=True)
class ChannelMoments:
    """What the statistics of any batch of some images follow from: the features need not be read for them at each step.

    A batch whose mean lies far from the origin loses digits of its variance, where a channel's own deviation is small beside.

    Attributes:
        origin: of each channel, where its values are seen from, (channels,).
        of_images: over each image's cells the mean of x - origin, then of its square, (n, 2 x channels).
    """

    origin: Tensor
    of_images: Tensor

    @classmethod
    def of(cls, stacks: Sequence[Tensor]) -> "ChannelMoments":
        """Those of features, seen from their own mean.

        Args:
            stacks: (n, features, C, *cells) or (n, features, C) each; their channels are taken in turn.
        """
        cells = [_by_cell(features) for features in stacks]
        means = torch.cat([x.mean(2).flatten(1) for x in cells], 1)
        origin = means.mean(0)
        parts = torch.split(origin, [x.shape[1] * x.shape[3] for x in cells])
        squares = [(x - part.view(-1, 1, x.shape[3])).square_().mean(2) for x, part in zip(cells, parts, strict=True)]
        return cls(origin, torch.cat([means - origin, *[square.flatten(1) for square in squares]], 1))

    def seen_from(self, origin: Tensor) -> "ChannelMoments":
        """The same from another origin."""
        shift = self.origin - origin
        first, second = self.of_images.chunk(2, 1)
        return ChannelMoments(origin, torch.cat([first + shift, second + shift * (2 * first + shift)], 1))

    def statistics(self, rows: Tensor) -> Statistics:
        """Mean and variance of each channel over some of the images, (B,) int64."""
        sums = functional.embedding_bag(rows[None], self.of_images, mode="sum")  # on a CPU half the time of picking rows
        first, second = sums.div_(len(rows)).view(2, -1)
        return self.origin + first, (second - first.square()).clamp_(min=0)


def _joined_weights(stack: Sequence[Sequence[LinearHead]]) -> Tensor:
    """Those of a stack's heads, (features, heads x classes, cells, channels)."""
    weights = torch.stack([torch.cat([head.linear.weight.detach() for head in mine]) for mine in stack])
    return weights.view(*weights.shape[:2], stack[0][0].norm.num_features, -1).mT.contiguous()


def _by_cell(features: Tensor) -> Tensor:
    """(B, features, C, *cells) as (B, features, cells, C)."""
    return features.reshape(*features.shape[:3], -1).mT


def _flat(stacks: Sequence[Tensor]) -> list[Tensor]:
    """(B, features, C, *cells) each as (B, features, cells x C)."""
    return [_by_cell(features).flatten(2) for features in stacks]


def flush_denormals(gradient: Tensor) -> Tensor:
    """Zero for what no float32 weight can feel.

    The saturated softmaxes of a high rate give gradients below 1e-38, which a CPU computes so slowly that the product which
    takes them to the weights took five times as long.
    """
    return functional.hardshrink(gradient, 1e-30)
