"""What `avt embed` is made of: the network, the images, and the rows that come of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from avtcli.contracts import Split
from avtcli.data.datasets import limited
from avtcli.data.resident_images import PLAIN_BATCH, plain_batches
from avtcli.embedding.embedding_rows import FLOAT32, INT64, UINT8, Array, Column, Rows
from avtcli.errors import AvtError
from avtcli.events import OnEvent, Progress
from avtcli.features.evaluation_target import Pictures, Subject, read_images
from avtcli.features.feature_reader import tap_shapes
from avtcli.features.pooling import pool_features
from avtcli.models.encoder import Encoder
from avtcli.models.weights import Source, encoder_of
from avtcli.runtime.devices import choose_device
from avtcli.runtime.execution import place


@dataclass(frozen=True)
class Wanted:
    """What of the images is wanted.

    Attributes:
        split: train, test or all.
        layers: the taps; none means the code.
        pool: avg, max or none, how maps are reduced.
        pool_size: the side of a map after pooling, in cells; at 1 a map becomes a vector, and smaller maps stay as they are.
        limit_train: embed a draw of so many training images.
    """

    split: Literal["train", "test", "all"] = "all"
    layers: tuple[str, ...] = ()
    pool: Literal["avg", "max", "none"] = "avg"
    pool_size: int = 1
    limit_train: int | None = None


@dataclass(frozen=True)
class Part:
    """Images of one split: which of them, (n,) int64, and its number in `SPLITS`."""

    split: Split
    numbers: Tensor
    index: int


@dataclass(frozen=True)
class Job:
    """All that it takes to make the rows."""

    encoder: Encoder
    parts: list[Part]
    layers: list[str]
    columns: dict[str, Column]
    wanted: Wanted
    pictures: Pictures
    device: torch.device
    workers: int | None
    on_event: OnEvent

    @property
    def count(self) -> int:
        """The number of images."""
        return sum(len(part.numbers) for part in self.parts)


def prepare(subject: Subject, wanted: Wanted, *, device: str, workers: int | None, on_event: OnEvent) -> Job:
    """Build and check all that the rows need; no image is read.

    Raises:
        AvtError: for a layer or split that does not exist, or images of another size than the network takes.
    """
    source, pictures = subject.source, subject.pictures
    parts = _parts(pictures, wanted)
    _check_size(source, pictures)
    chosen = torch.device(choose_device(device))
    encoder = place(encoder_of(source), chosen)
    layers = list(dict.fromkeys(wanted.layers)) or [encoder.backbone.code_tap]
    taps = tap_shapes(encoder, layers, pictures.size)
    if taken := sorted({"labels", "split", "names"} & set(layers)):
        raise AvtError(f"The file has a column '{taken[0]}' of its own: the backbone's layer of that name needs another one.")
    columns = {n: Column(FLOAT32, tuple(_reduced(torch.empty(1, *taps[n]), wanted).shape[1:])) for n in layers}
    if any(part.split.labels is not None for part in parts):
        columns["labels"] = Column(INT64, ())
    if wanted.split == "all":
        columns["split"] = Column(UINT8, ())
    return Job(encoder, parts, layers, columns, wanted, pictures, chosen, workers, on_event)


def _parts(pictures: Pictures, wanted: Wanted) -> list[Part]:
    data = pictures.data
    test = data.test if data.test is not None and len(data.test) else None
    if wanted.split == "test" and test is None:
        raise AvtError(f"The data set '{pictures.dataset.name}' has no test images: give --split train or all.")
    if wanted.split == "test" and wanted.limit_train is not None:
        raise AvtError("--limit-train draws training images, and --split test embeds none: leave one of them out.")
    parts = []
    if wanted.split != "test":
        parts.append(Part(data.train, limited(data.train, wanted.limit_train), 0))
    if wanted.split != "train" and test is not None:
        parts.append(Part(test, torch.arange(len(test)), 1))
    return parts


def _check_size(source: Source, pictures: Pictures) -> None:
    """Refuse images of another size than the network was trained on, unless a crop says that it is meant."""
    size, trained = pictures.size, source.spec.size
    if size != trained and pictures.augment.crop is None:
        side = min(trained)
        raise AvtError(
            f"The images are {size[0]}x{size[1]} px, the backbone of {source.path} was trained on {trained[0]}x{trained[1]} "
            f"px: give `-o augment.resize={side} -o augment.crop={side}`, or other sides that you mean."
        )


def _reduced(tap: Tensor, wanted: Wanted) -> Tensor:
    """A tap as it is stored: pooled to one cell, a map (B, C, H, W) becomes a vector (B, C)."""
    if tap.ndim == 2 or wanted.pool == "none":
        return tap
    pooled = pool_features(tap, wanted.pool, wanted.pool_size)
    return pooled.flatten(1) if wanted.pool_size == 1 else pooled


def text_of(name: str) -> str:
    """A name as every format takes it; bytes of a file name that are no UTF-8 stand as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def make_rows(job: Job) -> Iterator[Rows]:
    """The rows of the file in their order, a batch at a time, made when they are asked for."""
    done = 0
    for part in job.parts:
        images = read_images(part.split, part.numbers, job.pictures, device=job.device, workers=job.workers)
        batches = list(torch.split(torch.arange(len(images)), PLAIN_BATCH))
        for rows, batch in zip(batches, plain_batches(images, batches, job.pictures.size), strict=True):
            numbers = part.numbers[rows]
            with torch.no_grad():
                taps = job.encoder.features(job.encoder.normalise(batch), job.layers)
                columns = {layer: _reduced(tap, job.wanted).float().cpu().numpy() for layer, tap in taps.items()}
            names = [text_of(part.split.name(i)) for i in numbers.tolist()]
            yield Rows(names, columns | _said(part, numbers, job.columns))
            done += len(rows)
            job.on_event(Progress("embedding", done, job.count, "images"))


def _said(part: Part, numbers: Tensor, columns: dict[str, Column]) -> dict[str, Array]:
    """Labels and split of some images, where the file has them; images without labels beside others with some have -1."""
    said: dict[str, Array] = {}
    if "labels" in columns:
        labels = torch.full_like(numbers, -1) if part.split.labels is None else part.split.labels[numbers]
        said["labels"] = labels.numpy()
    if "split" in columns:
        said["split"] = np.full(len(numbers), part.index, UINT8)
    return said
