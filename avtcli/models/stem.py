"""The first convolution of a network, which has few input channels."""

from torch import Tensor, nn
from torch.nn import functional


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
