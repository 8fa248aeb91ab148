"""Many linear heads at once: the same as one by one, in a few large products instead of many small ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli.core.heads import LinearHead

FAST_STATISTICS = ("cpu",)
"""Classes of device where var_mean over the rows takes 15 times as long as what a BatchNorm computes its statistics with."""


class LinearHeads:
    """Several `LinearHead`s on each of several features of one shape, each with weights and a rate of its own.

    What normalisation does to a batch is done to the few weights instead, so that no normalised copy of the features is made. A
    channel whose mean is hundreds of deviations costs the logits and the gradients two digits.

    Args:
        heads: for each feature its heads, as many for each, all of one shape and number of classes; they are not changed.

    Attributes:
        parameters: for each feature and head in turn its (weight, bias), to be given to an optimiser. They share memory with
            the stacks that the products read and write.
    """

    def __init__(self, heads: Sequence[Sequence[LinearHead]]) -> None:
        norm = heads[0][0].norm
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        assert norm.momentum is not None
        self.channels, self.eps, self.momentum = norm.num_features, norm.eps, norm.momentum
        self.running_mean, self.running_var = (
            torch.stack([getattr(mine[0].norm, name) for mine in heads]) for name in ("running_mean", "running_var")
        )
        # the channels last, as the features lie
        by_channel = torch.stack([torch.stack([head.linear.weight.detach() for head in mine]) for mine in heads])
        weight = by_channel.view(*by_channel.shape[:3], self.channels, -1).transpose(-1, -2).flatten(-2)
        bias = torch.stack([torch.stack([head.linear.bias.detach() for head in mine]) for mine in heads])
        self._weight, self._bias = weight, bias
        self._gradients = torch.empty_like(weight), torch.empty_like(bias)
        weights, biases = ([nn.Parameter(part) for part in stack.flatten(0, 1)] for stack in (weight, bias))
        self.parameters = list(zip(weights, biases, strict=True))
        parts = (part for stack in self._gradients for part in stack.flatten(0, 1))
        self._pairs = list(zip([*weights, *biases], parts, strict=True))  # each parameter and its gradient

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """Features (features, B, *shape), normalised by the running statistics, give logits (features x heads, classes, B)."""
        return self._logits(self._cells(features), self.running_mean, (self.running_var + self.eps).rsqrt())

    @torch.no_grad()
    def learn(self, features: Tensor, labels: Tensor) -> None:
        """Leave the parameters the gradients of their heads' mean cross-entropies on a batch, in place of earlier ones.

        The batch is normalised by its own statistics, which are added to the running ones. Where g = (softmax - one-hot) / B is
        the gradient of the logits W (x - mean) rate + b, that of W is (g'x - sum(g)' mean) rate.

        Args:
            features: (features, B, *shape).
            labels: (B,) int64.
        """
        x = self._cells(features)
        groups, count, cells, channels = x.shape
        mean, var = self._statistics(x)
        rate = (var + self.eps).rsqrt()
        signal = self._logits(x, mean, rate).softmax(1)
        signal.scatter_add_(1, labels.expand(len(signal), 1, -1), signal.new_full((), -1).expand(len(signal), 1, count))
        signal = without_dust(signal.div_(count)).view(groups, -1, count)  # (features, heads x classes, B)
        of_weight, of_bias = self._gradients
        total = torch.sum(signal, 2, out=of_bias.view(groups, -1))
        torch.bmm(signal, x.flatten(2), out=of_weight.view(groups, -1, cells * channels))
        centre = (total.unsqueeze(2) * mean.unsqueeze(1)).unsqueeze(2)
        of_weight.view(groups, -1, cells, channels).sub_(centre).mul_(rate[:, None, None])
        for parameter, gradient in self._pairs:
            parameter.grad = gradient

    def _cells(self, features: Tensor) -> Tensor:
        """(features, B, *shape) as (features, B, cells, channels)."""
        return features.movedim(2, -1).reshape(*features.shape[:2], -1, self.channels)

    def _logits(self, x: Tensor, mean: Tensor, rate: Tensor) -> Tensor:
        """W (x - mean) rate + b for x (features, B, cells, channels), mean and rate of (features, channels) each."""
        groups, count = x.shape[:2]
        weight = self._weight.view(groups, -1, self.channels) * rate.unsqueeze(1)
        shift = (weight @ mean.unsqueeze(2)).view(groups, -1, x.shape[2]).sum(2)
        bias = (self._bias.view(groups, -1) - shift).unsqueeze(2)
        logits = torch.baddbmm(bias, weight.view(groups, -1, self._weight.shape[-1]), x.flatten(2).transpose(1, 2))
        return logits.view(-1, self._bias.shape[-1], count)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel in a batch (features, B, cells, channels), (features, channels) each."""
        rows = x.flatten(1, 2)
        if x.device.type in FAST_STATISTICS:
            found = [torch.batch_norm_update_stats(mine, None, None, 0.0) for mine in rows]
            mean, var = (torch.stack(parts) for parts in zip(*found, strict=True))
        else:
            var, mean = torch.var_mean(rows, 1, correction=0)
        count = rows.shape[1]
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return mean, var


def without_dust(gradient: Tensor) -> Tensor:
    """Zero for what no float32 weight can feel.

    The saturated softmaxes of a high rate give gradients below 1e-38, which a CPU computes so slowly that the product which
    takes them to the weights took five times as long.
    """
    return functional.hardshrink(gradient, 1e-30)
