"""What `avt embed` is made of: the network, the images, and the rows that come of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from avtcli.contracts import Split
from avtcli.data.datasets import limited
from avtcli.data.resident_images import EVAL_BATCH_SIZE, evaluation_batches
from avtcli.embedding.embedding_rows import FLOAT32, INT64, UINT8, Array, Column, Rows
from avtcli.errors import AvtError
from avtcli.events import OnEvent, Progress
from avtcli.features.evaluation_target import EvaluationTarget, PreparedImages, read_images
from avtcli.features.feature_reader import tap_shapes
from avtcli.features.pooling import pool_features
from avtcli.models.encoder import Encoder
from avtcli.models.weights import Weights, restore_encoder
from avtcli.runtime.context import Context
from avtcli.runtime.devices import choose_device
from avtcli.runtime.execution import prepare_for_inference


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
    """Images of one split: which of them, (n,) int64, and its index in `SPLITS`."""

    split: Split
    indices: Tensor
    index: int


@dataclass(frozen=True)
class EmbeddingSetup:
    """All that it takes to make the rows."""

    encoder: Encoder
    parts: list[Part]
    layers: list[str]
    columns: dict[str, Column]
    wanted: Wanted
    prepared: PreparedImages
    device: torch.device
    workers: int | None
    on_event: OnEvent

    @property
    def count(self) -> int:
        """The index of images."""
        return sum(len(part.indices) for part in self.parts)


def build_embedding_setup(
    subject: EvaluationTarget, wanted: Wanted, *, device: str, workers: int | None, on_event: OnEvent
) -> EmbeddingSetup:
    """Build and check all that the rows need; no image is read.

    Raises:
        AvtError: for a layer or split that does not exist, or images of another size than the network takes.
    """
    source, prepared = subject.source, subject.prepared
    parts = _parts(prepared, wanted)
    _check_size(source, prepared)
    chosen = torch.device(choose_device(device))
    encoder = prepare_for_inference(restore_encoder(source), chosen)
    layers = list(dict.fromkeys(wanted.layers)) or [encoder.backbone.code_tap]
    taps = tap_shapes(encoder, layers, prepared.size)
    if taken := sorted({"labels", "split", "names"} & set(layers)):
        raise AvtError(f"The file has a column '{taken[0]}' of its own: the backbone's layer of that name needs another one.")
    columns = {n: Column(FLOAT32, tuple(_reduced(torch.empty(1, *taps[n]), wanted).shape[1:])) for n in layers}
    if any(part.split.labels is not None for part in parts):
        columns["labels"] = Column(INT64, ())
    if wanted.split == "all":
        columns["split"] = Column(UINT8, ())
    return EmbeddingSetup(encoder, parts, layers, columns, wanted, prepared, chosen, workers, on_event)


def _parts(prepared: PreparedImages, wanted: Wanted) -> list[Part]:
    data = prepared.data
    test = data.test if data.test is not None and len(data.test) else None
    if wanted.split == "test" and test is None:
        raise AvtError(f"The data set '{prepared.dataset.name}' has no test images: give --split train or all.")
    if wanted.split == "test" and wanted.limit_train is not None:
        raise AvtError("--limit-train draws training images, and --split test embeds none: leave one of them out.")
    parts = []
    if wanted.split != "test":
        parts.append(Part(data.train, limited(data.train, wanted.limit_train), 0))
    if wanted.split != "train" and test is not None:
        parts.append(Part(test, torch.arange(len(test)), 1))
    return parts


def _check_size(source: Weights, prepared: PreparedImages) -> None:
    """Refuse images of another size than the network was trained on, unless a crop says that it is meant."""
    size, trained = prepared.size, source.spec.size
    if size != trained and prepared.augment.crop is None:
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


def make_rows(setup: EmbeddingSetup) -> Iterator[Rows]:
    """The rows of the file in their order, a batch at a time, made when they are asked for."""
    done = 0
    for part in setup.parts:
        images = read_images(part.split, part.indices, setup.prepared, context=Context(setup.device, setup.workers))
        batches = list(torch.split(torch.arange(len(images)), EVAL_BATCH_SIZE))
        for rows, batch in zip(batches, evaluation_batches(images, batches, setup.prepared.size), strict=True):
            indices = part.indices[rows]
            with torch.no_grad():
                taps = setup.encoder.features(setup.encoder.normalise(batch), setup.layers)
                columns = {layer: _reduced(tap, setup.wanted).float().cpu().numpy() for layer, tap in taps.items()}
            names = [text_of(part.split.name(i)) for i in indices.tolist()]
            yield Rows(names, columns | _said(part, indices, setup.columns))
            done += len(rows)
            setup.on_event(Progress("embedding", done, setup.count, "images"))


def _said(part: Part, indices: Tensor, columns: dict[str, Column]) -> dict[str, Array]:
    """Labels and split of some images, where the file has them; images without labels beside others with some have -1."""
    said: dict[str, Array] = {}
    if "labels" in columns:
        labels = torch.full_like(indices, -1) if part.split.labels is None else part.split.labels[indices]
        said["labels"] = labels.numpy()
    if "split" in columns:
        said["split"] = np.full(len(indices), part.index, UINT8)
    return said
