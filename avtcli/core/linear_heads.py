"""Many linear heads at once: the same as one by one, in a few large products instead of many small ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avtcli.core.heads import LinearHead

FAST_STATISTICS = ("cpu",)
"""Classes of device where var_mean over the rows takes 15 times as long as what a BatchNorm computes its statistics with."""


class LinearHeads:
    """Several `LinearHead`s on each of several features of one shape, each with weights and a rate of its own.

    What normalisation does to a batch is done to the few weights instead, so that no normalised copy of the features is made. A
    channel whose mean is hundreds of deviations costs the logits two digits.

    Args:
        heads: for each feature its heads, as many for each, all of one shape and number of classes; they are not changed.

    Attributes:
        parameters: for each feature and head in turn its (weight, bias), to be given to an optimiser. They share memory with
            the stacks that the products read, and a backward pass leaves them its gradients, in place of earlier ones.
        training: whether batches are normalised by their own statistics, and these added to the running ones.
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
        self._weight = by_channel.view(*by_channel.shape[:3], self.channels, -1).transpose(-1, -2).flatten(-2)
        self._bias = torch.stack([torch.stack([head.linear.bias.detach() for head in mine]) for mine in heads])
        self.parameters = list(zip(_parts_of(self._weight), _parts_of(self._bias), strict=True))
        self.training = True

    def __call__(self, features: Tensor) -> Tensor:
        """Features (features, B, *shape), without gradients of their own, give logits (features x heads, classes, B)."""
        groups, count = features.shape[:2]
        classes = self._bias.shape[-1]
        x = features.movedim(2, -1).reshape(groups, count, -1, self.channels)
        mean, var = self._statistics(x) if self.training else (self.running_mean, self.running_var)
        weight = self._weight.view(groups, -1, self.channels) * (var + self.eps).rsqrt().unsqueeze(1)
        shift = (weight @ mean.unsqueeze(2)).view(groups, -1, x.shape[2]).sum(2)
        bias = (self._bias.view(groups, -1) - shift).unsqueeze(2)
        logits = torch.baddbmm(bias, weight.view(groups, -1, self._weight.shape[-1]), x.flatten(2).transpose(1, 2))
        return logits.view(-1, classes, count)

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


def _parts_of(stack: Tensor) -> list[nn.Parameter]:
    """Make a stack (features, heads, ...) a leaf whose backward passes leave parameters, made of its parts, their gradients."""
    parts = [nn.Parameter(part) for part in stack.flatten(0, 1)]

    def share(stack: Tensor) -> None:
        assert stack.grad is not None
        for part, gradient in zip(parts, stack.grad.flatten(0, 1), strict=True):
            part.grad = gradient
        stack.grad = None

    stack.requires_grad_().register_post_accumulate_grad_hook(share)  # type: ignore[no-untyped-call]
    return parts
