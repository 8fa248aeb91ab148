"""Setup of `avt embed`: the network, the images and the layers; and their features, batch by batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from avtcli.contracts import Split
from avtcli.data.datasets import limited
from avtcli.data.resident_images import EVAL_BATCH_SIZE, evaluation_batches
from avtcli.embedding.embedding_files import RESERVED, SPLITS, Array
from avtcli.errors import AvtError
from avtcli.events import Progress
from avtcli.features.evaluation_target import EvaluationTarget, read_images
from avtcli.features.feature_reader import tap_shapes
from avtcli.features.pooling import pool_features
from avtcli.models.encoder import Encoder
from avtcli.models.weights import restore_encoder
from avtcli.runtime.context import Context
from avtcli.runtime.execution import prepare_for_inference


@dataclass(frozen=True)
class EmbeddingRequest:
    """Which images to embed, and which features.

    Attributes:
        split: train, test or all.
        layers: the taps; empty means the code.
        pool: avg, max or none: how maps are reduced.
        pool_size: side of a map after pooling, in cells; at 1 a map becomes a vector, and smaller maps stay as they are.
        limit_train: size of a seeded subset of the training images.
    """

    split: Literal["train", "test", "all"] = "all"
    layers: tuple[str, ...] = ()
    pool: Literal["avg", "max", "none"] = "avg"
    pool_size: int = 1
    limit_train: int | None = None


@dataclass(frozen=True)
class EmbeddingPart:
    """Images of one split: its name, one of `SPLITS`, and the indices of the images, (n,) int64."""

    name: str
    split: Split
    indices: Tensor


@dataclass(frozen=True)
class EmbeddingSetup:
    """What features are computed from; `shapes` holds the shape of one image's feature by layer."""

    target: EvaluationTarget
    request: EmbeddingRequest
    encoder: Encoder
    parts: list[EmbeddingPart]
    shapes: dict[str, tuple[int, ...]]
    context: Context

    @property
    def count(self) -> int:
        """The number of images."""
        return sum(len(part.indices) for part in self.parts)


def build_embedding_setup(target: EvaluationTarget, request: EmbeddingRequest, context: Context) -> EmbeddingSetup:
    """Build and check everything that features need, without reading an image.

    Raises:
        AvtError: for a layer or split that does not exist, or images of another size than the network takes.
    """
    parts = _build_parts(target, request)
    _check_size(target)
    encoder = prepare_for_inference(restore_encoder(target.source), context.device)
    layers = list(dict.fromkeys(request.layers)) or [encoder.backbone.code_tap]
    taps = tap_shapes(encoder, layers, target.prepared.size)
    if reserved := sorted(RESERVED & set(layers)):
        raise AvtError(f"Embedding files reserve the name '{reserved[0]}': rename the backbone's layer of that name.")
    shapes = {name: tuple(_reduce(torch.empty(1, *taps[name]), request).shape[1:]) for name in layers}
    return EmbeddingSetup(target, request, encoder, parts, shapes, context)


def _build_parts(target: EvaluationTarget, request: EmbeddingRequest) -> list[EmbeddingPart]:
    data = target.prepared.data
    test = data.test if data.test is not None and len(data.test) else None
    if request.split == "test" and test is None:
        raise AvtError(f"The data set '{target.prepared.dataset.name}' has no test images: give --split train or all.")
    if request.split == "test" and request.limit_train is not None:
        raise AvtError("--limit-train limits training images, and --split test embeds none: leave one of them out.")
    parts = []
    if request.split != "test":
        parts.append(EmbeddingPart("train", data.train, limited(data.train, request.limit_train)))
    if request.split != "train" and test is not None:
        parts.append(EmbeddingPart("test", test, torch.arange(len(test))))
    return parts


def _check_size(target: EvaluationTarget) -> None:
    """Refuse images of another size than the network was trained on, unless a crop was given."""
    size, trained = target.prepared.size, target.source.spec.size
    if size != trained and target.prepared.augment.crop is None:
        side = min(trained)
        raise AvtError(
            f"The images are {size[0]}x{size[1]} px, the backbone of {target.source.path} was trained on "
            f"{trained[0]}x{trained[1]} px: give `-o augment.resize={side} -o augment.crop={side}`, or other sizes."
        )


def _reduce(tap: Tensor, request: EmbeddingRequest) -> Tensor:
    """Pool a tap; at one cell a map (B, C, H, W) becomes a vector (B, C)."""
    pooled = pool_features(tap, request.pool, request.pool_size)
    return pooled.flatten(1) if tap.ndim == 4 and request.pool != "none" and request.pool_size == 1 else pooled


def image_names(setup: EmbeddingSetup) -> list[str]:
    """The names of all images; bytes of a file name that are not UTF-8 become escapes."""
    names = (part.split.name(i) for part in setup.parts for i in part.indices.tolist())
    return [name.encode("utf-8", "backslashreplace").decode() for name in names]


def label_columns(setup: EmbeddingSetup) -> dict[str, Array]:
    """The columns `labels` (-1 where a split has none), if any split has labels, and `split`, if all splits were requested."""
    columns: dict[str, Array] = {}
    if any(part.split.labels is not None for part in setup.parts):
        labels = [torch.full_like(p.indices, -1) if p.split.labels is None else p.split.labels[p.indices] for p in setup.parts]
        columns["labels"] = torch.cat(labels).numpy()
    if setup.request.split == "all":
        columns["split"] = np.concatenate([np.full(len(p.indices), SPLITS.index(p.name), np.uint8) for p in setup.parts])
    return columns


@torch.no_grad()
def compute_features(setup: EmbeddingSetup, out: Mapping[str, Tensor]) -> None:
    """Fill `out`, (count, *shape) float32 by layer, with the features of all images, batch by batch."""
    done, context, size = 0, setup.context, setup.target.prepared.size
    for part in setup.parts:
        images = read_images(part.split, part.indices, setup.target.prepared, context=context)
        batches = list(torch.split(torch.arange(len(images)), EVAL_BATCH_SIZE))
        for batch in evaluation_batches(images, batches, size):
            taps = setup.encoder.features(setup.encoder.normalise(batch), list(setup.shapes))
            for layer, tap in taps.items():
                out[layer][done : done + len(batch)] = _reduce(tap, setup.request)
            done += len(batch)
            context.on_event(Progress("embedding", done, setup.count, "images"))
