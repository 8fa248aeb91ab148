"""Embeddings: the features of every image of a data set, in one file, in the order of the data set."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from avtcli.embedding.embedding_files import SPLITS, EmbeddingTable, check_room, format_of, save_embeddings
from avtcli.embedding.embedding_setup import (
    EmbeddingRequest,
    EmbeddingSetup,
    build_embedding_setup,
    compute_features,
    image_names,
    label_columns,
)
from avtcli.errors import AvtError
from avtcli.events import Saved, Started
from avtcli.features.cache_storage import allocate, choose_storage
from avtcli.features.evaluation_target import EvaluationTarget
from avtcli.models.weights import Weights
from avtcli.runtime.context import Context


@dataclass(frozen=True)
class EmbedResult:
    """What `avt embed` reports; the shapes of the layers are (count, ...)."""

    file: str
    format: str
    count: int
    layers: dict[str, tuple[int, ...]]
    labels: bool
    bytes: int
    load_with: str


def embed(target: EvaluationTarget, request: EmbeddingRequest, *, out: Path | None, context: Context) -> EmbedResult:
    """Write the features of images to a file, row by row in the order of the data set, training images first.

    Images are resized and center-cropped, and the code is its mean: nothing is random.

    Args:
        target: weights and images.
        request: which images and which layers, and how they are reduced.
        out: the file; none means embeddings.safetensors in the run folder.
        context: device, workers and events.

    Raises:
        AvtError: for a layer, split or format that does not exist, images of another size than the network takes, an existing
            file, or too little room on the disk.
        RunFailedError: if the file, read back, is not what was computed.
    """
    out = out or _default_file(target.source)
    file_format = format_of(out)
    setup = build_embedding_setup(target, request, context)
    context.on_event(Started(_facts(setup, out)))
    layers = {name: (setup.count, *shape) for name, shape in setup.shapes.items()}
    store = choose_storage(
        4 * sum(prod(shape) for shape in layers.values()), advice="Give fewer layers, a smaller --pool-size or --limit-train"
    )
    features = {name: allocate(shape, store) for name, shape in layers.items()}
    columns = {name: values.numpy() for name, values in features.items()} | label_columns(setup)
    table = EmbeddingTable(image_names(setup), columns, _about(setup))
    check_room(out, table)  # after the allocation, which may be on the same disk
    compute_features(setup, features)
    size = save_embeddings(out, table)
    context.on_event(Saved(out))
    first, shape = next(iter(setup.shapes.items()))
    return EmbedResult(
        file=str(out),
        format=out.suffix.removeprefix("."),
        count=setup.count,
        layers=layers,
        labels="labels" in columns,
        bytes=size,
        load_with=file_format.load_with.format(path=str(out), layer=first, sides=", ".join(map(str, shape))),
    )


def _default_file(source: Weights) -> Path:
    if source.run is None:
        raise AvtError(f"{source.path} is not a run folder, where embeddings are written by default: give --out.")
    return source.run / "embeddings.safetensors"


def _about(setup: EmbeddingSetup) -> dict[str, Any]:
    """The file's metadata: where its values come from and how they were computed."""
    from avtcli import __version__

    source, prepared, request = setup.target.source, setup.target.prepared, setup.request
    return {
        "version": __version__,
        "weights": {
            "path": str(source.path),
            "step": source.about.get("step"),
            "made": source.about.get("weights"),
            "backbone": source.spec.backbone.model_dump(mode="json"),
        },
        "dataset": prepared.dataset.model_dump(mode="json"),
        "fingerprint": prepared.data.fingerprint,
        "classes": prepared.data.classes,
        "split": request.split,
        "splits": SPLITS,
        "limit_train": request.limit_train,
        "layers": setup.shapes,
        "pool": request.pool,
        "pool_size": None if request.pool == "none" else request.pool_size,
        "resize": prepared.augment.resize,
        "size": prepared.size,
        "mean": source.spec.mean,
        "std": source.spec.std,
    }


def _facts(setup: EmbeddingSetup, out: Path) -> tuple[tuple[str, str], ...]:
    prepared, request, side = setup.target.prepared, setup.request, setup.request.pool_size
    return (
        ("weights", str(setup.target.source.path)),
        ("images", f"{setup.count} of {prepared.dataset.name}, {request.split}, {prepared.size[0]}x{prepared.size[1]} px"),
        ("layers", ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in setup.shapes.items())),
        ("pooling", "none" if request.pool == "none" else f"{request.pool} to {side}x{side}"),
        ("device", setup.context.device.type),
        ("file", str(out)),
    )
