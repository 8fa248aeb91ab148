"""Features of labelled images, computed by an encoder: one forward pass of a batch gives all layers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import torch
from torch import Tensor

from avtcli.config.components import Augment
from avtcli.contracts import Size
from avtcli.data.epoch_table import sample_uniforms
from avtcli.data.images import CropSpec, Images
from avtcli.data.resident_images import EVAL_BATCH_SIZE, ResidentImages
from avtcli.errors import AvtError
from avtcli.features.finite_check import FiniteCheck
from avtcli.features.pooling import pool_features
from avtcli.models.encoder import Encoder
from avtcli.seeding import keyed_generator

EVAL_BATCH_PIXELS: Final = EVAL_BATCH_SIZE * 224 * 224
"""Pixels of a batch on a GPU where nothing is trained: one that fits for images of 224 px fits for more smaller ones."""
MAX_EVAL_BATCH_SIZE: Final = 2000


def eval_batch_size(images: Images, size: Size) -> int:
    """The number of images to read at once where nothing is trained; more of those that live on a GPU, if they are small."""
    if not isinstance(images, ResidentImages) or images.images.device.type != "cuda":
        return EVAL_BATCH_SIZE
    return min(max(EVAL_BATCH_SIZE, EVAL_BATCH_PIXELS // prod(size)), MAX_EVAL_BATCH_SIZE)


@dataclass(frozen=True)
class Feature:
    """A tap and how its map is pooled."""

    layer: str
    pool: str
    pool_size: int


Features = Mapping[Feature, Tensor]
"""Features of some images: float32 tensors (n, *shape), their channels last in memory."""


class FeatureReader(ABC):
    """Features of labelled images, by row.

    Labels, (n,) int64, are on the device of the features; `shapes` are those of one image, (C, H, W) or (C,).
    """

    labels: Tensor
    shapes: Mapping[Feature, tuple[int, ...]]
    eval_batch: int  # images to read at once where no batch size is asked for

    @abstractmethod
    def read_batches(self, batches: Sequence[Tensor], *, epoch_key: tuple[int, int] | None) -> Iterator[Features]:
        """Read the features of batches of rows, (B,) int64 each, on the device.

        `epoch_key` is (seed, epoch) of the crops, flips and code samples of training; none for evaluation: the centre crop,
        and the same code samples whenever the same batches are read.
        """


@dataclass(frozen=True)
class LabelledImages:
    """Images of one part of a data set: train, test or held-out; the seed of code samples depends on it.

    The labels, (n,) int64, are on the device of the images; `size` is (height, width) of the crop.
    """

    images: Images
    labels: Tensor
    part: str
    size: Size


class ForwardedImages(FeatureReader):
    """Features that are computed whenever they are read; with an encoder in training mode they carry gradients.

    Args:
        encoder: on the device of the images.
        data: the images.
        wanted: the features to read.
        augment: padding and flip of training images; none reads the centre crop in training too.
        samples: number of samples of the code to average; 0 takes the mean of the code.
        seed: of the code samples in evaluation.
    """

    def __init__(
        self,
        encoder: Encoder,
        data: LabelledImages,
        wanted: Sequence[Feature],
        *,
        augment: Augment | None,
        samples: int,
        seed: int,
    ) -> None:
        self.encoder, self.data, self.wanted, self.augment, self.seed = encoder, data, wanted, augment, seed
        self.labels = data.labels
        self.samples = samples if encoder.log_var is not None else 0
        # the samples of the code depend on the batches
        self.eval_batch = EVAL_BATCH_SIZE if self.samples else eval_batch_size(data.images, data.size)
        self.layers = list(dict.fromkeys(feature.layer for feature in wanted))
        code = encoder.backbone.code_tap
        taps = tap_shapes(encoder, [*self.layers, code], data.size)
        self.code_shape = taps[code]
        self.shapes = {f: tuple(_pooled(torch.empty(1, *taps[f.layer]), f).shape[1:]) for f in wanted}

    def read_batches(
        self, batches: Sequence[Tensor], *, epoch_key: tuple[int, int] | None, first: int = 0
    ) -> Iterator[Features]:
        """Forward images; see `FeatureReader`. `first` is the number of the first batch among those that are shared out.

        Raises:
            NotFiniteError: after the last batch, if features are not finite. Those of a network in training are not looked at:
                each of its steps would wait for the device.
        """
        check = FiniteCheck()
        key: tuple[int | str, ...] = (*(epoch_key or (self.seed,)), "samples", self.data.part)
        crop, uniforms = CropSpec(self.data.size), None
        if epoch_key is not None and self.augment is not None:
            crop = CropSpec(self.data.size, padding=self.augment.padding, flip=self.augment.flip)
            table = sample_uniforms(*epoch_key, len(self.data.images))
            uniforms = (table[rows] for rows in batches)
        for index, batch in enumerate(self.data.images.read_batches(batches, crop, uniforms) if batches else (), first):
            with torch.set_grad_enabled(self.encoder.training):
                taps = self._taps(self.encoder.normalise(batch), (*key, index))
                features = {feature: _pooled(taps[feature.layer], feature).float() for feature in self.wanted}
                if not self.encoder.training:
                    check.count({feature.layer: own for feature, own in features.items()})
            yield {feature: own.movedim(1, -1).contiguous().movedim(-1, 1) for feature, own in features.items()}
        check.finish()

    def _taps(self, x: Tensor, key: tuple[int | str, ...]) -> dict[str, Tensor]:
        """The taps of a batch; with samples, the code is their mean and the taps after it see the first sample."""
        encoder, code = self.encoder, self.encoder.backbone.code_tap
        if not self.samples:
            return encoder.features(x, self.layers)
        log_var = encoder.log_var_name
        generator = keyed_generator(*key, device=x.device)
        noise = [torch.randn(len(x), *self.code_shape, generator=generator, device=x.device) for _ in range(self.samples)]
        taps = encoder.features(x, list(dict.fromkeys([*self.layers, code, log_var])), noise[0])
        # the layers before the code are deterministic, so the mean of the samples is that of their noise
        mean_noise = torch.stack(noise).mean(0)
        return {**taps, code: taps[code] + encoder.noise_scale * (0.5 * taps[log_var]).exp() * mean_noise}


def tap_shapes(encoder: Encoder, layers: Sequence[str], size: Size) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's feature of one image, (C, H, W) or (C,); a size that the encoder cannot take is refused."""
    x = torch.zeros(1, len(encoder.pixel_mean), *size, device=encoder.pixel_mean.device)
    try:
        with torch.no_grad():
            taps = encoder.features(x, list(dict.fromkeys(layers)))
    except (RuntimeError, AssertionError) as error:  # messages of torch and timm name layers and shapes, not the option
        raise AvtError(
            f"The backbone does not take images of {size[0]}x{size[1]} px. Give the size that it was trained on by "
            "`-o augment.resize=N -o augment.crop=N`."
        ) from error
    return {name: tuple(tap.shape[1:]) for name, tap in taps.items()}


def _pooled(tap: Tensor, feature: Feature) -> Tensor:
    return pool_features(tap, feature.pool, feature.pool_size)
