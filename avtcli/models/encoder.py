"""The stochastic encoder: the backbone's map at one tap is the mean of a Gaussian code."""

from collections.abc import Collection, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli.contracts import Backbone
from avtcli.errors import AvtError, ShapeError, nearest
from avtcli.geometry.cropping import to_float

OVERSHOOT: Final = (-1.0, 2.0)
"""Bounds of images in [0, 1] that were interpolated: floats from 0 to 255 lie far outside."""


class Encoder(nn.Module):
    """z = mean + noise_scale * exp(log_var / 2) * eps (the paper's reparametrised code; the release's scale is 0.001).

    The mean is the backbone's map at its code tap; the log-variance is a 1x1 convolution and a BatchNorm on it. Without a
    noise scale there is no branch and the code is its mean (AET).

    Args:
        backbone: any backbone of the contract.
        noise_scale: factor on the standard deviation; 0 means no log-variance branch.
        output: the tap that calling the encoder returns; none means the code tap.
        pixel_mean: mean of each channel of images in [0, 1].
        pixel_std: standard deviation of each channel.

    Raises:
        AvtError: if the backbone has no tap called `output`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        noise_scale: float = 0.0,
        output: str | None = None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        channels = backbone.taps[backbone.code_tap]
        self.backbone = backbone
        self.noise_scale = noise_scale
        self.log_var_name = f"{backbone.code_tap}.log_var"
        self.log_var: nn.Module | None = None
        if noise_scale:
            self.log_var = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.output = output or backbone.code_tap
        self.check_layers([self.output])
        # stored in the specification, not with the weights
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self._largest = max(max(abs(mean), abs(1 - mean)) / std for mean, std in zip(pixel_mean, pixel_std, strict=True))

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images, float in [0, 1] or uint8, (B, C, H, W), by channel: what the encoder takes.

        Raises:
            ShapeError: for another layout, or another number of channels.
            AvtError: for what is no tensor of images, or floats of another range, as from 0 to 255.
        """
        _check_layout(images, self.pixel_mean.numel())
        if images.is_floating_point():
            _check_values(images, *OVERSHOOT, "Images are floats in [0, 1] or uint8", "give images / 255")
        elif images.dtype != torch.uint8:
            raise AvtError(f"Images are floats in [0, 1] or uint8, found {images.dtype}: give images.to(torch.uint8).")
        return self.standardise(images)

    def standardise(self, images: Tensor) -> Tensor:
        """Normalise as `normalise` does, without its checks: looking at the values would make the host wait for a GPU."""
        images = to_float(images).to(torch.promote_types(images.dtype, self.pixel_mean.dtype))
        stats = (self.pixel_mean, self.pixel_std.square())
        mean, var = (stat.flatten().to(images.dtype).expand(images.shape[1]).contiguous() for stat in stats)
        # one pass over the images; before torch 2.14 an eps of 0 is refused, and this one changes no variance of pixels
        return functional.batch_norm(images, mean, var, eps=1e-30)

    @property
    def backbone_model(self) -> nn.Module:
        """The bare network, with its own parameter names."""
        return self.backbone.bare()

    @property
    def layers(self) -> tuple[str, ...]:
        """The taps of the backbone, in its order; `features` takes the log-variance too, by `log_var_name`."""
        return tuple(self.backbone.taps)

    def check_layers(self, layers: Collection[str]) -> None:
        """Raise an AvtError for a layer that does not exist, with the list of those that do."""
        for layer in layers:
            if layer not in self.layers and (self.log_var is None or layer != self.log_var_name):
                known = ", ".join(self.layers)
                raise AvtError(f"The backbone has no layer '{layer}'. {nearest(layer, self.layers)}Its layers: {known}.")

    def encode(self, x: Tensor, noise: Tensor | None = None, want: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode images with given noise, sampled noise (training mode), or none (eval mode).

        Args:
            x: normalised images, (B, C, H, W).
            noise: eps, with the code's shape.
            want: the taps to return.

        Returns:
            The decoder's input vector, (B, vector_dim), and the requested taps; the code tap is the mean of the code.
        """
        taps: dict[str, Tensor] = {}

        def code(mean: Tensor) -> Tensor:
            taps[self.backbone.code_tap] = mean
            if self.log_var is None or not (self.training or noise is not None or self.log_var_name in want):
                return mean
            log_var = taps[self.log_var_name] = self.log_var(mean)
            if noise is None and not self.training:
                return mean
            eps = torch.randn_like(mean) if noise is None else noise
            sampled: Tensor = mean + self.noise_scale * (0.5 * log_var).exp() * eps
            return sampled

        asked = [name for name in want if name in self.backbone.taps and name != self.backbone.code_tap]
        vector, maps = self.backbone(x, code, asked)
        return vector, {**maps, **{name: tap for name, tap in taps.items() if name in want}}

    def features(self, x: Tensor, layers: Sequence[str], noise: Tensor | None = None) -> dict[str, Tensor]:
        """Read taps by name: name -> (B, C, H, W), or (B, C) for a vector.

        The code tap gives the mean of the code, `NAME.log_var` its log-variance; in eval mode without noise later taps are
        computed from the mean.

        Args:
            x: images, (B, C, H, W), as `normalise` returns them.
            layers: some of `self.layers`, or `self.log_var_name`.
            noise: eps of the code, with its shape; see `encode`.

        Raises:
            AvtError: for a name that is no tap, with the list of them, or an x of another layout, type or device.
        """
        if isinstance(layers, str):
            raise AvtError(f"features takes a list of layers, found {layers!r}: give [{layers!r}].")
        self.check_layers(layers)
        self.check_input(x)
        _, taps = self.encode(x, noise, layers)
        return {name: taps[name] for name in layers}

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the code, (B, C, H, W), or the tap named by `output`.

        Args:
            x: images, (B, C, H, W), as `normalise` returns them.

        Raises:
            AvtError: for an x of another layout, type or device, or, on the CPU, with values that no image has.
        """
        self.check_values(x)
        return self.features(x, [self.output])[self.output]

    def code_shape(self, channels: int, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the code's shape (C, H, W) for images of size (height, width)."""
        training, name = self.training, self.backbone.code_tap
        with torch.no_grad():
            x = next(self.parameters()).new_zeros(1, channels, *size)
            code = self.eval().features(x, [name])[name]
        self.train(training)
        return tuple(code.shape[1:])

    def check_input(self, x: Tensor) -> None:
        """Raise an AvtError unless x is (B, C, H, W), floats as the weights are, or autocast to them, on their device."""
        _check_layout(x, self.pixel_mean.numel())
        if not x.is_floating_point():
            raise AvtError(f"The encoder takes normalised images, found {x.dtype}: give encoder.normalise(images).")
        weight = next(self.parameters(), self.pixel_mean)
        if x.device != weight.device or (x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type)):
            images, weights = (f"{tensor.dtype} on {tensor.device}" for tensor in (x, weight))
            raise AvtError(
                f"The images are {images}, the weights {weights}: give images.to('{weight.device}', {weight.dtype})."
            )

    def check_values(self, x: Tensor) -> None:
        """Check as `check_input`, and on the CPU look for values that no normalised image has; a GPU would be waited for."""
        self.check_input(x)
        if x.device.type == "cpu":
            limit, wanted = 10 * self._largest, f"Normalised images are within {self._largest:.1f} of 0"
            _check_values(x, -limit, limit, wanted, "give encoder.normalise(images)")


def _check_layout(images: Any, channels: int) -> None:
    """Refuse what is no tensor (B, channels, H, W), with the expression that makes one of it."""
    if not isinstance(images, Tensor):
        raise AvtError(
            f"Images are a tensor, (B, {channels}, H, W), found {type(images).__name__}: give torch.as_tensor(images)."
        )
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[1] == channels:
        return
    advice = "give images[None] for one image" if len(shape) == 3 else "give another shape"
    if len(shape) == 4 and shape[3] == channels:
        advice = "give images.permute(0, 3, 1, 2)"
    elif len(shape) == 3 and shape[2] == channels != shape[0]:
        advice = "give images.permute(2, 0, 1)[None]"
    elif len(shape) == 4 and channels == 1:
        advice = "give images.mean(1, keepdim=True) for grey ones"
    elif len(shape) == 4 and shape[1] == 1:
        advice = f"give images.expand(-1, {channels}, -1, -1) for grey ones"
    raise ShapeError(f"Images are (B, {channels}, H, W), found {shape}: {advice}.")


def _check_values(images: Tensor, lowest: float, highest: float, wanted: str, advice: str) -> None:
    """Refuse values outside of bounds; what is compiled or captured for a GPU, or has no values, is not looked at."""
    if torch.compiler.is_compiling() or images.is_meta or not images.numel():
        return
    if images.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    try:
        least, most = (float(value) for value in images.detach().aminmax())
    except RuntimeError:  # of torch.func.vmap, under which no value can be read
        return
    if not (lowest <= least and most <= highest):  # NaN is within no bounds
        raise AvtError(f"{wanted}, found values from {least:g} to {most:g}: {advice}.")
