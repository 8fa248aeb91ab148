"""The stochastic encoder: the backbone's map at one tap is the mean of a Gaussian code."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli.contracts import Backbone
from avtcli.errors import AvtError, ShapeError, nearest
from avtcli.geometry.cropping import to_float


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
        self._log_var_name = f"{backbone.code_tap}.log_var"
        self.log_var: nn.Module | None = None
        if noise_scale:
            self.log_var = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.output = output or backbone.code_tap
        self.check_layers([self.output])
        # stored in the specification, not with the weights
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images, float in [0, 1] or uint8, (B, C, H, W), by channel.

        Raises:
            ShapeError: for another shape, or channels without statistics.
        """
        known = self.pixel_mean.numel()
        if images.ndim != 4 or known not in (1, images.shape[1]):
            raise ShapeError(f"Images are (B, {known}, H, W), found {tuple(images.shape)}.")
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
        """The names that `features` accepts, in the order of the network."""
        names = list(self.backbone.taps)
        after = names.index(self.backbone.code_tap) + 1
        return (*names[:after], *([] if self.log_var is None else [self._log_var_name]), *names[after:])

    def check_layers(self, layers: Collection[str]) -> None:
        """Raise an AvtError for a layer that does not exist, with the list of those that do."""
        for layer in layers:
            if layer not in self.layers:
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
            if self.log_var is None or not (self.training or noise is not None or self._log_var_name in want):
                return mean
            log_var = taps[self._log_var_name] = self.log_var(mean)
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

        Raises:
            AvtError: for a name that is no tap; the message lists them.
        """
        self.check_layers(layers)
        _, taps = self.encode(x, noise, layers)
        return {name: taps[name] for name in layers}

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the code, (B, C, H, W), or the tap named by `output`."""
        return self.features(x, [self.output])[self.output]

    def code_shape(self, channels: int, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the code's shape (C, H, W) for images of size (height, width)."""
        training, name = self.training, self.backbone.code_tap
        with torch.no_grad():
            x = next(self.parameters()).new_zeros(1, channels, *size)
            code = self.eval().features(x, [name])[name]
        self.train(training)
        return tuple(code.shape[1:])
