"""Embeddings: the features of every image of a data set, in one file, in the order of the data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from avtcli.config.components import Frozen
from avtcli.config.resolution import read_components, validate
from avtcli.data.held_out import limited, partition
from avtcli.data.resident_images import evaluation_batches
from avtcli.embedding.embedding_files import RESERVED, SPLITS, Array, EmbeddingTable, check_room, format_of, save_embeddings
from avtcli.errors import AvtError
from avtcli.events import OnEvent, Progress, Saved, Started
from avtcli.features.cache_storage import allocate, choose_storage
from avtcli.features.evaluation_target import EvaluationTarget, ImagePart, measure_usable, open_target, read_images
from avtcli.features.feature_reader import eval_batch_size, tap_shapes
from avtcli.features.finite_check import FiniteCheck
from avtcli.features.pooling import pool_features
from avtcli.models.encoder import Encoder
from avtcli.models.initial_weights import report_uninitialised
from avtcli.models.weights import restore_encoder
from avtcli.plugin_options import parts_of
from avtcli.runtime.devices import Context
from avtcli.runtime.execution import prepare_for_inference
from avtcli.runtime.launcher import read_launch
from avtcli.runtime.processes import run_in_main, shared_rows


class EmbeddingRequest(Frozen):
    """Which images to embed, and which features."""

    split: Literal["train", "test", "all"] = "all"
    """Images to embed."""
    layers: tuple[str, ...] = ()
    """Layers to embed; none: the code."""
    pool: Literal["avg", "max", "none"] = "avg"
    """Spatial pooling of feature maps."""
    pool_size: int | None = Field(default=None, ge=1)
    """Side of a map after pooling, in cells, by default 1; smaller maps stay as they are."""
    limit_train: int | None = Field(default=None, ge=1)
    """Size of a seeded subset of the training images, the one that a run of that limit trains on; none: all of them."""

    @model_validator(mode="after")
    def _pooled_or_not(self) -> "EmbeddingRequest":
        if self.pool == "none" and self.pool_size is not None:
            raise ValueError("--pool-size is the side of a pooled map and --pool none does not pool: give only one of them")
        return self

    @property
    def side(self) -> int:
        """Side of a map after pooling; at 1 a map becomes a vector."""
        return self.pool_size or 1


@dataclass(frozen=True)
class EmbeddingSetup:
    """What features are computed from; `shapes` are those of one image's features, by layer."""

    target: EvaluationTarget
    request: EmbeddingRequest
    encoder: Encoder
    parts: Sequence[ImagePart]
    shapes: dict[str, tuple[int, ...]]
    context: Context

    @property
    def count(self) -> int:
        """The number of images."""
        return sum(len(part.indices) for part in self.parts)

    def image_names(self) -> list[str]:
        """The names of all images; bytes of a file name that are not UTF-8 become escapes."""
        names = (part.split.name(i) for part in self.parts for i in part.indices.tolist())
        return [name.encode("utf-8", "backslashreplace").decode() for name in names]

    def label_columns(self) -> dict[str, Array]:
        """Columns `labels` (-1 where a split has none), if any split has labels, and `split`, if all splits were requested."""
        columns: dict[str, Array] = {}
        if any(part.split.labels is not None for part in self.parts):
            pairs = [(part.split.labels, part.indices) for part in self.parts]
            labels = [torch.full_like(rows, -1) if own is None else own[rows] for own, rows in pairs]
            columns["labels"] = torch.cat(labels).numpy()
        if self.request.split == "all":
            columns["split"] = np.concatenate([np.full(len(p.indices), SPLITS.index(p.name), np.uint8) for p in self.parts])
        return columns


@dataclass(frozen=True)
class EmbedResult:
    """What `avt embed` reports; the shapes of the layers are (count, ...), and the step is that of the weights, where known."""

    file: str
    format: str
    step: int | None
    count: int
    layers: dict[str, tuple[int, ...]]
    labels: bool
    bytes: int
    load_with: str


def embed_as_asked(arguments: Mapping[str, Any], options: Mapping[str, dict[str, Any]], *, on_event: OnEvent) -> EmbedResult:
    """Embed as the arguments of `avt embed` say, by name, and options by kind; see `embed`."""
    components = read_components(options, backbone=arguments["backbone"], dataset=arguments["dataset"])
    asked = {key: arguments[key] for key in ("split", "pool", "pool_size", "limit_train")}
    request = validate(EmbeddingRequest, {**asked, "layers": parts_of(arguments["layer"])}, where="embed")
    target, context = open_target(arguments, components, on_event=on_event)
    return embed(target, request, out=arguments["out"], context=context)


def embed(target: EvaluationTarget, request: EmbeddingRequest, *, out: Path | None, context: Context) -> EmbedResult:
    """Write the features of images to a file, row by row in the order of the data set, training images first.

    Images are resized and center-cropped, and the code is its mean: nothing is random. Without `out` the file is
    embeddings.safetensors in the run folder.

    Raises:
        AvtError: for what does not exist, images of a size that does not fit, an existing file, or too little disk space.
        RunFailedError: if features are not finite, or the file, read back, is not what was computed.
    """
    source = target.source
    if out is None:
        if source.run is None:
            raise AvtError(f"{source.path} is not a run folder, where embeddings are written by default: give --out.")
        out = source.run / "embeddings.safetensors"
    path, load_with = out, format_of(out).load_with
    setup = build_embedding_setup(target, request, context)
    return measure_usable(setup.parts, lambda parts: _embed(replace(setup, parts=parts), path, load_with), context=context)


def _embed(setup: EmbeddingSetup, out: Path, load_with: str) -> EmbedResult:
    context = setup.context
    context.on_event(Started(_facts(setup, out)))
    layers = {name: (setup.count, *shape) for name, shape in setup.shapes.items()}
    needed = 4 * sum(map(prod, layers.values()))
    store = choose_storage(needed, advice="Give fewer layers, a smaller --pool-size or --limit-train")
    features = {name: allocate(shape, store) for name, shape in layers.items()}
    columns = {name: values.numpy() for name, values in features.items()} | setup.label_columns()
    table = EmbeddingTable(setup.image_names(), columns, _about(setup))
    check_room(out, table)  # after the allocation, which may be on the same disk
    compute_features(setup, features)
    size = run_in_main(context.group, lambda: save_embeddings(out, table))
    context.on_event(Saved(out))
    first, shape = next(iter(setup.shapes.items()))
    lines = load_with.format(path=str(out), layer=first, sides=", ".join(map(str, shape)))
    facts = (setup.target.source.step, setup.count, layers, "labels" in columns)
    return EmbedResult(str(out), out.suffix[1:], *facts, size, lines)


def _about(setup: EmbeddingSetup) -> dict[str, Any]:
    from avtcli import __version__

    source, prepared, request = setup.target.source, setup.target.prepared, setup.request
    made = {"path": str(source.path), "step": source.step, "made": source.about.get("weights")}
    return {
        "version": __version__,
        "weights": {**made, "backbone": source.spec.backbone.model_dump(mode="json")},
        "dataset": prepared.dataset.model_dump(mode="json"),
        "fingerprint": prepared.data.fingerprint,
        "classes": prepared.data.classes,
        "split": request.split,
        "splits": SPLITS,
        "limit_train": request.limit_train,
        "layers": setup.shapes,
        "pool": request.pool,
        "pool_size": None if request.pool == "none" else request.side,
        "resize": prepared.augment.resize,
        "size": prepared.size,
        "mean": source.spec.mean,
        "std": source.spec.std,
    }


def _facts(setup: EmbeddingSetup, out: Path) -> tuple[tuple[str, str], ...]:
    prepared, request, side = setup.target.prepared, setup.request, setup.request.side
    return (
        ("weights", str(setup.target.source)),
        ("images", f"{setup.count} of {prepared.dataset.name}, {request.split}, {prepared.size[0]}x{prepared.size[1]} px"),
        ("layers", ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in setup.shapes.items())),
        ("pooling", "none" if request.pool == "none" else f"{request.pool} to {side}x{side}"),
        ("device", setup.context.device.type),
        ("file", str(out)),
    )


def build_embedding_setup(target: EvaluationTarget, request: EmbeddingRequest, context: Context) -> EmbeddingSetup:
    """Build and check everything that features need, without reading an image."""
    parts = _build_parts(target, request)
    size, trained = target.prepared.size, target.source.spec.size
    if size != trained and target.prepared.augment.crop is None:
        side = min(trained)
        raise AvtError(
            f"The images are {size[0]}x{size[1]} px, {target.source.path} was trained on {trained[0]}x{trained[1]} px: give "
            f"`-o augment.resize={side} -o augment.crop={side}`."
        )
    encoder = restore_encoder(target.source)
    layers = list(dict.fromkeys(request.layers)) or [encoder.backbone.code_tap]
    taps = tap_shapes(encoder, layers, size)
    report_uninitialised(target.source, encoder, layers, size, on_event=context.on_event)
    encoder = prepare_for_inference(encoder, context.device)
    if reserved := sorted(RESERVED & set(layers)):
        raise AvtError(f"Embedding files reserve the name '{reserved[0]}': rename the backbone's layer of that name.")
    shapes = {name: tuple(_reduce(torch.empty(1, *taps[name]), request).shape[1:]) for name in layers}
    return EmbeddingSetup(target, request, encoder, parts, shapes, context)


def _build_parts(target: EvaluationTarget, request: EmbeddingRequest) -> list[ImagePart]:
    prepared, data, parts = target.prepared, target.prepared.data, []
    if request.split == "test" and not data.test:
        raise AvtError(f"The data set '{target.prepared.dataset.name}' has no test images: give --split train or all.")
    if request.split == "test" and request.limit_train is not None:
        raise AvtError("--limit-train limits training images, and --split test embeds none: leave one of them out.")
    if request.split != "test":
        limit = request.limit_train
        rows = torch.arange(len(data.train)) if limit is None else limited(partition(data).train, limit)
        parts.append(ImagePart("train", data.train, rows, prepared))
    if request.split != "train" and data.test:
        parts.append(ImagePart("test", data.test, torch.arange(len(data.test)), prepared))
    return parts


def _reduce(tap: Tensor, request: EmbeddingRequest) -> Tensor:
    pooled = pool_features(tap, request.pool, request.side)
    return pooled.flatten(1) if tap.ndim == 4 and request.pool != "none" and request.side == 1 else pooled


@torch.no_grad()
def compute_features(setup: EmbeddingSetup, out: Mapping[str, Tensor]) -> None:
    """Fill `out`, (count, *shape) float32 by layer, with the features of all images, batch by batch; see `FiniteCheck`."""
    check, context, size, world = FiniteCheck(), setup.context, setup.target.prepared.size, read_launch().world
    every, done = torch.split(torch.arange(setup.count), [len(part.indices) for part in setup.parts]), 0
    for part, rows_of_part in zip(setup.parts, every, strict=True):
        images = read_images(part.split, part.indices, setup.target.prepared, context=context)
        with shared_rows(context.group, list(out.values()), torch.split(rows_of_part, eval_batch_size(images, size))) as own:
            pixels = evaluation_batches(images, [rows - rows_of_part[0] for rows in own], size)
            for rows, batch in zip(own, pixels, strict=True):
                taps = setup.encoder.features(setup.encoder.normalise(batch), list(setup.shapes))
                check.count(features := {layer: _reduce(tap, setup.request) for layer, tap in taps.items()})
                for layer, values in features.items():
                    out[layer][int(rows[0]) : int(rows[-1]) + 1] = values
                done = min(done + world * len(batch), int(rows_of_part[-1]) + 1)
                context.on_event(Progress("embedding", done, setup.count, "images"))
            check.finish()
