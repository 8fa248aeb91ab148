"""Features of frozen encoders by image: kept after one reading, or read anew each epoch from images cropped and flipped."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from avtcli.config import Augment
from avtcli.contracts import Size
from avtcli.core.encoder import Encoder
from avtcli.core.heads import pool_features
from avtcli.core.keyed import keyed_generator
from avtcli.errors import AvtError
from avtcli.runs.events import OnEvent, Progress
from avtcli.runs.images import Images, Window
from avtcli.runs.loaders import draw_uniforms

BATCH = 250  # images that are forwarded at once for measuring


@dataclass(frozen=True)
class Feature:
    """What to read of an image: a tap, reduced."""

    layer: str
    pool: str
    pool_size: int


class FeatureReader(ABC):
    """Features of labelled images, by row."""

    labels: Tensor
    """(n,) int64, on the device of the features."""
    shapes: Mapping[Feature, tuple[int, ...]]
    """The shape of each feature of one image, (C, H, W) or (C,)."""
    plain_batch: int
    """How many images to ask for at once where it does not matter."""

    @abstractmethod
    def read(self, batches: Sequence[Tensor], *, drawn: tuple[int, int] | None) -> Iterator[dict[Feature, Tensor]]:
        """Read batches in their order.

        Args:
            batches: rows, (B,) int64 each.
            drawn: (seed, epoch) of the crops, flips and samples of the code, for training; none for measuring: the middle
                of each image, and the same samples at every reading of the same batches.

        Yields:
            Each feature of the batch, (B, *shape), float32, on the device.
        """


class KeptFeatures(FeatureReader):
    """Features that were read once, on the device of the heads; there is nothing to draw.

    Args:
        features: (n, *shape) each.
        labels: (n,) int64.
        device: where the heads are.
    """

    plain_batch = 2000

    def __init__(self, features: Mapping[Feature, Tensor], labels: Tensor, *, device: torch.device) -> None:
        self.features = {feature: tensor.to(device) for feature, tensor in features.items()}
        self.labels = labels.to(device)
        self.shapes = {feature: tuple(tensor.shape[1:]) for feature, tensor in features.items()}

    def read(self, batches: Sequence[Tensor], *, drawn: tuple[int, int] | None) -> Iterator[dict[Feature, Tensor]]:
        """Pick rows; see `FeatureReader`."""
        for rows in batches:
            picked = rows.to(self.labels.device)
            yield {feature: tensor[picked] for feature, tensor in self.features.items()}


class ForwardedImages(FeatureReader):
    """Features that are computed when they are needed: one forward of the frozen encoder a batch gives all of them.

    Args:
        encoder: in eval mode, on the images' device.
        images: the images.
        labels: theirs, (n,) int64, on the same device.
        wanted: what to read.
        part: the part of the data set that the images are, for the key of the samples.
        augment: padding and flip of the training images; resizing is the images' affair.
        size: (height, width) of the crop.
        samples: how many samples of the code its mean is taken over; 0 takes the mean of the code.
        seed: of the samples for measuring.

    Raises:
        AvtError: if the encoder cannot take images of the size.
    """

    plain_batch = BATCH

    def __init__(
        self,
        encoder: Encoder,
        images: Images,
        labels: Tensor,
        wanted: Sequence[Feature],
        *,
        part: str,
        augment: Augment,
        size: Size,
        samples: int,
        seed: int,
    ) -> None:
        self.encoder, self.images, self.labels, self.wanted = encoder, images, labels, wanted
        self.part, self.augment, self.size, self.seed = part, augment, size, seed
        self.samples = samples if encoder.log_var is not None else 0
        self.layers = list(dict.fromkeys(feature.layer for feature in wanted))
        code = encoder.backbone.code_tap
        zeros = torch.zeros(1, len(encoder.pixel_mean), *size, device=labels.device)
        try:
            with torch.no_grad():
                taps = encoder.features(zeros, [*self.layers, code])
        except RuntimeError as error:  # torch names layers and shapes, which is of no use here
            raise AvtError(
                f"The backbone does not take images of {size[0]}x{size[1]} px. Probe on images of the size that it was trained "
                "on: `-o augment.resize` and `-o augment.crop` make them so."
            ) from error
        self.code_shape = tuple(taps[code].shape[1:])
        self.shapes = {feature: tuple(_reduced(taps[feature.layer], feature).shape[1:]) for feature in wanted}

    def read(self, batches: Sequence[Tensor], *, drawn: tuple[int, int] | None) -> Iterator[dict[Feature, Tensor]]:
        """Forward images; see `FeatureReader`."""
        if drawn is None:
            key: tuple[int | str, ...] = (self.seed, "samples", self.part)
            window, uniforms = Window(self.size), None
        else:
            key = (*drawn, "samples", self.part)
            window = Window(self.size, padding=self.augment.padding, flip=self.augment.flip)
            uniforms = draw_uniforms(*drawn, len(self.images))
        for index, batch in enumerate(self.images.read_batches(batches, window, uniforms)):
            with torch.no_grad():
                taps = self._taps(self.encoder.normalise(batch), (*key, index))
                features = {f: _reduced(taps[f.layer], f).float() for f in self.wanted}
            yield features

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


def _reduced(tap: Tensor, feature: Feature) -> Tensor:
    side = feature.pool_size if tap.ndim == 2 else min(feature.pool_size, *tap.shape[2:])
    return pool_features(tap, feature.pool, side)


def stored_bytes(reader: FeatureReader) -> int:
    """What the features of all images take, in bytes."""
    return 4 * len(reader.labels) * sum(prod(shape) for shape in reader.shapes.values())


def memory_bytes() -> int:
    """The memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def extract(reader: FeatureReader, *, task: str, on_event: OnEvent) -> dict[Feature, Tensor]:
    """Read the features of all images in one pass, without augmentation.

    Args:
        reader: where to read.
        task: its name in the progress.
        on_event: told how far it is.

    Returns:
        Each feature of all images, (n, *shape), float32, on the CPU.

    Raises:
        AvtError: if they would not fit in memory.
    """
    count, needed, there = len(reader.labels), stored_bytes(reader), memory_bytes()
    if needed > 0.8 * there:
        raise AvtError(
            f"The features of {count} images would take {needed / 1e9:.0f} GB, this machine has {there / 1e9:.0f} GB. "
            "Give fewer layers, a smaller --pool-size, --limit-train, or --augment, which keeps none."
        )
    out = {feature: torch.empty(count, *shape) for feature, shape in reader.shapes.items()}
    batches = list(torch.split(torch.arange(count), reader.plain_batch))
    for rows, features in zip(batches, reader.read(batches, drawn=None), strict=True):
        for feature, values in features.items():
            out[feature][rows] = values.cpu()
        on_event(Progress(task, int(rows[-1]) + 1, count, "images"))
    return out
