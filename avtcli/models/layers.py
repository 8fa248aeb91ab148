"""Layers that give what PyTorch's give: a faster first convolution, and BatchNorm over several processes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


class StemConv2d(nn.Conv2d):
    """A convolution of images of a few channels, without groups or dilation; padding is a number of pixels.

    On a CUDA device it is one matrix product over unfolded patches: cuDNN would pad 1 or 3 channels to 8, and rewrite the
    images for that at each step.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        if not input.is_cuda:
            return super().forward(input)
        (high, wide), stride, (down, across) = self.kernel_size, self.stride, map(int, self.padding)
        padded = functional.pad(input, (across, across, down, down))
        patches = padded.unfold(2, high, stride[0]).unfold(3, wide, stride[1]).permute(0, 2, 3, 1, 4, 5).flatten(3)
        spare = (0, -patches.shape[-1] % 8)  # tensor cores take rows of multiples of 8
        out = functional.linear(functional.pad(patches, spare), functional.pad(self.weight.flatten(1), spare), self.bias)
        return out.permute(0, 3, 1, 2)


def synchronise_batch_norms(net: nn.Module) -> None:
    """Let every BatchNorm of a network normalise by the statistics of the samples of all processes, where it is trained.

    The layers stay what they are, with their names and what a subclass adds. Without gradients, as where statistics are
    estimated in one process, they are as before.
    """
    for norm in net.modules():
        if isinstance(norm, _BatchNorm):
            kind = type(norm)
            norm.__class__ = type(kind.__name__, (_Synchronised, kind), {})


class _Synchronised(nn.Module):
    """What `synchronise_batch_norms` puts before the class of a layer."""

    def forward(self, x: Tensor) -> Tensor:
        with _StatisticsOfAll():
            normalised: Tensor = super().forward(x)
        return normalised


class _StatisticsOfAll(TorchFunctionMode):
    """Within, `batch_norm` in training takes the statistics of the samples of all processes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_batch_norm if func is functional.batch_norm else func)(*args, **(kwargs or {}))


class _SumOfAll(torch.autograd.Function):
    """The sum of a tensor over all processes, and in the backward pass of its gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, own: Tensor) -> Tensor:
        return _SumOfAll.forward(ctx, own)


def _batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, *, training: bool, momentum: float, **more: Any
) -> Tensor:
    """Do as PyTorch's `batch_norm`, with mean and variance over all processes; gradients flow through both."""
    weight, bias, eps = more["weight"], more["bias"], more["eps"]
    normalised: Tensor
    if not training or not torch.is_grad_enabled():
        normalised = functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        return normalised
    if x.is_cuda:
        group, world = torch.distributed.group.WORLD, torch.distributed.get_world_size()
        normalised = SyncBatchNorm.apply(x, weight, bias, running_mean, running_var, eps, momentum, group, world)
        return normalised
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    dims, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    total = _SumOfAll.apply(torch.cat([values.sum(dims), values.new_tensor([x.numel() // x.shape[1]])]))
    mean, count = total[:-1] / total[-1], total[-1].detach()
    centred = values - mean.view(shape)
    var = _SumOfAll.apply(centred.square().sum(dims)) / count
    with torch.no_grad():
        for running, of_all in ((running_mean, mean), (running_var, var * count / (count - 1))):
            if running is not None:
                running.lerp_(of_all, momentum)
    scale = (var + eps).rsqrt()
    normalised = centred * (scale if weight is None else weight * scale).view(shape)
    return (normalised if bias is None else normalised + bias.view(shape)).to(x.dtype)
