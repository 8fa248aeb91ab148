"""Features of encoders by image, and how they are computed: one forward of a batch gives all of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avtcli.config.components import Augment
from avtcli.contracts import Size
from avtcli.data.epoch_table import sample_uniforms
from avtcli.data.images import CropSpec, Images
from avtcli.data.resident_images import EVAL_BATCH_SIZE
from avtcli.errors import AvtError
from avtcli.features.pooling import pool_features
from avtcli.models.encoder import Encoder
from avtcli.probing.linear_heads import Statistics
from avtcli.seeding import keyed_generator


@dataclass(frozen=True)
class Feature:
    """What to read of an image: a tap, reduced."""

    layer: str
    pool: str
    pool_size: int


@dataclass(frozen=True)
class Batch:
    """Features of a few images, those of one shape together, in the order of a reader's `stacks`.

    Attributes:
        stacks: each (B, features, *shape), float32.
        statistics: of the batch's channels; none where they were not kept.
    """

    stacks: list[Tensor]
    statistics: Statistics | None = None


class FeatureReader(ABC):
    """Features of labelled images, by row."""

    labels: Tensor
    """(n,) int64, on the device of the features."""
    shapes: Mapping[Feature, tuple[int, ...]]
    """The shape of each feature of one image, (C, H, W) or (C,)."""
    plain_batch: int
    """How many images to ask for at once where it does not matter."""

    @property
    def stacks(self) -> list[tuple[Feature, ...]]:
        """The features, those of one shape together."""
        shapes = dict.fromkeys(self.shapes.values())
        return [tuple(f for f, mine in self.shapes.items() if mine == shape) for shape in shapes]

    @abstractmethod
    def read_batches(self, batches: Sequence[Tensor], *, drawn: tuple[int, int] | None) -> Iterator[Batch]:
        """Read batches in their order.

        Args:
            batches: rows, (B,) int64 each.
            drawn: (seed, epoch) of the crops, flips and samples of the code, for training; none for measuring: the middle
                of each image, and the same samples at every reading of the same batches.

        Yields:
            Each batch, on the device.
        """


class ForwardedImages(FeatureReader):
    """Features that are computed when they are needed: one forward of the encoder a batch gives all of them.

    Args:
        encoder: on the images' device; while it is in training mode, the features carry gradients.
        images: the images.
        labels: theirs, (n,) int64, on the same device.
        wanted: what to read.
        part: the part of the data set that the images are, for the key of the samples.
        augment: padding and flip of the training images; none reads their middle whatever is drawn. Resizing is the images'
            affair.
        size: (height, width) of the crop.
        samples: how many samples of the code its mean is taken over; 0 takes the mean of the code.
        seed: of the samples for measuring.

    Raises:
        AvtError: if the encoder cannot take images of the size.
    """

    plain_batch = EVAL_BATCH_SIZE

    def __init__(
        self,
        encoder: Encoder,
        images: Images,
        labels: Tensor,
        wanted: Sequence[Feature],
        *,
        part: str,
        augment: Augment | None,
        size: Size,
        samples: int,
        seed: int,
    ) -> None:
        self.encoder, self.images, self.labels, self.wanted = encoder, images, labels, wanted
        self.part, self.augment, self.size, self.seed = part, augment, size, seed
        self.samples = samples if encoder.log_var is not None else 0
        self.layers = list(dict.fromkeys(feature.layer for feature in wanted))
        code = encoder.backbone.code_tap
        taps = tap_shapes(encoder, [*self.layers, code], size)
        self.code_shape = taps[code]
        self.shapes = {f: tuple(_reduced(torch.empty(1, *taps[f.layer]), f).shape[1:]) for f in wanted}

    def read_batches(self, batches: Sequence[Tensor], *, drawn: tuple[int, int] | None) -> Iterator[Batch]:
        """Forward images; see `FeatureReader`."""
        for found in self.read_features(batches, drawn=drawn):
            parts = ([found[name].movedim(1, -1) for name in names] for names in self.stacks)
            yield Batch([torch.stack(part, 1).movedim(-1, 2) for part in parts])

    def read_features(self, batches: Sequence[Tensor], *, drawn: tuple[int, int] | None) -> Iterator[dict[Feature, Tensor]]:
        """As `read_batches`, each feature for itself, (B, *shape)."""
        key: tuple[int | str, ...] = (*(drawn or (self.seed,)), "samples", self.part)
        window, uniforms = CropSpec(self.size), None
        if drawn is not None and self.augment is not None:
            window = CropSpec(self.size, padding=self.augment.padding, flip=self.augment.flip)
            uniforms = sample_uniforms(*drawn, len(self.images))
        for index, batch in enumerate(self.images.read_batches(batches, window, uniforms)):
            with torch.set_grad_enabled(self.encoder.training):
                taps = self._taps(self.encoder.normalise(batch), (*key, index))
                found = {feature: _reduced(taps[feature.layer], feature).float() for feature in self.wanted}
            yield found

    def _taps(self, x: Tensor, key: tuple[int | str, ...]) -> dict[str, Tensor]:
        """The taps of a batch; with samples, the code tap is the mean of so many, and the taps after it see the first."""
        encoder, code = self.encoder, self.encoder.backbone.code_tap
        if not self.samples:
            return encoder.features(x, self.layers)
        log_var = f"{code}.log_var"
        generator = keyed_generator(*key, device=x.device)
        draws = [torch.randn(len(x), *self.code_shape, generator=generator, device=x.device) for _ in range(self.samples)]
        taps = encoder.features(x, list(dict.fromkeys([*self.layers, code, log_var])), draws[0])
        # the layers before the code draw nothing, so that samples differ in their noise alone
        noise = torch.stack(draws).mean(0)
        return {**taps, code: taps[code] + encoder.noise_scale * (0.5 * taps[log_var]).exp() * noise}


def tap_shapes(encoder: Encoder, layers: Sequence[str], size: Size) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's feature of one image, (C, H, W) or (C,) for a vector; the encoder is in eval mode.

    Raises:
        AvtError: if the encoder cannot take images of the size.
    """
    x = torch.zeros(1, len(encoder.pixel_mean), *size, device=encoder.pixel_mean.device)
    try:
        with torch.no_grad():
            taps = encoder.features(x, list(dict.fromkeys(layers)))
    except (RuntimeError, AssertionError) as error:  # torch and timm name layers and shapes, which is of no use here
        raise AvtError(
            f"The backbone does not take images of {size[0]}x{size[1]} px. Give it images of the size that it was trained on: "
            "`-o augment.resize` and `-o augment.crop` make them so."
        ) from error
    return {name: tuple(tap.shape[1:]) for name, tap in taps.items()}


def _reduced(tap: Tensor, feature: Feature) -> Tensor:
    return pool_features(tap, feature.pool, feature.pool_size)
