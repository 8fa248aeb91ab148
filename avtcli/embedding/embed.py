"""Embeddings: the features of every image of a data set, in one file, in the order of the data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avtcli.embedding.embedding_files import format_of, write_embeddings
from avtcli.embedding.embedding_rows import SPLITS, Contents
from avtcli.embedding.embedding_setup import EmbeddingSetup, Wanted, build_embedding_setup, make_rows, text_of
from avtcli.errors import AvtError
from avtcli.events import OnEvent, Saved, Started
from avtcli.features.evaluation_target import EvaluationTarget
from avtcli.models.weights import Weights


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


def embed(
    subject: EvaluationTarget,
    wanted: Wanted,
    *,
    out: Path | None,
    device: str = "auto",
    workers: int | None = None,
    on_event: OnEvent,
) -> EmbedResult:
    """Write the features of images to a file, row by row in the order of the data set, the training images first.

    The images are resized and cropped to their middle, and the code is its mean: nothing is drawn.

    Args:
        subject: weights and images.
        wanted: which images, which layers, and how they are reduced.
        out: the file; left out, embeddings.safetensors in the run folder.
        device: auto, cpu, cuda or mps.
        workers: processes that read images which do not fit in memory, or none for auto.
        on_event: told what happens.

    Raises:
        AvtError: for a layer, split or format that does not exist, images of another size than the network takes, a file in the
            way, or too little room on the disk.
        RunFailedError: if the file, read back, is not what was written.
    """
    out = _target(subject.source, out)
    kind = format_of(out)
    setup = build_embedding_setup(subject, wanted, device=device, workers=workers, on_event=on_event)
    contents = _contents(setup, _about(subject, setup))
    on_event(Started(_facts(subject, setup, out)))
    size = write_embeddings(out, contents, make_rows(setup))
    on_event(Saved(out))
    layer = setup.layers[0]
    return EmbedResult(
        file=str(out),
        format=out.suffix.removeprefix("."),
        count=setup.count,
        layers={layer: contents.shapes[layer] for layer in setup.layers},
        labels="labels" in setup.columns,
        bytes=size,
        load_with=kind.load_with(out, layer, setup.columns[layer].shape),
    )


def _target(source: Weights, out: Path | None) -> Path:
    if out is not None:
        return out
    if source.run is None:
        raise AvtError(f"{source.path} is no run, whose folder would take the embeddings: say with --out where they go.")
    return source.run / "embeddings.safetensors"


def _contents(setup: EmbeddingSetup, about: dict[str, Any]) -> Contents:
    name_bytes, longest = 0, 0
    for part in setup.parts:
        for i in part.indices.tolist():
            name = text_of(part.split.name(i))
            name_bytes, longest = name_bytes + len(name.encode()), max(longest, len(name))
    return Contents(setup.count, setup.columns, name_bytes, longest, about)


def _about(subject: EvaluationTarget, setup: EmbeddingSetup) -> dict[str, Any]:
    """Everything that it takes to know what the numbers are."""
    from avtcli import __version__

    source, prepared, wanted = subject.source, subject.prepared, setup.wanted
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
        "split": wanted.split,
        "splits": SPLITS,
        "limit_train": wanted.limit_train,
        "layers": {layer: setup.columns[layer].shape for layer in setup.layers},
        "pool": wanted.pool,
        "pool_size": None if wanted.pool == "none" else wanted.pool_size,
        "resize": prepared.augment.resize,
        "size": prepared.size,
        "mean": source.spec.mean,
        "std": source.spec.std,
    }


def _facts(subject: EvaluationTarget, setup: EmbeddingSetup, out: Path) -> tuple[tuple[str, str], ...]:
    prepared = subject.prepared
    shapes = ((layer, "x".join(str(side) for side in setup.columns[layer].shape)) for layer in setup.layers)
    pooling = (
        "none" if setup.wanted.pool == "none" else f"{setup.wanted.pool} to {setup.wanted.pool_size}x{setup.wanted.pool_size}"
    )
    return (
        ("weights", str(subject.source.path)),
        ("images", f"{setup.count} of {prepared.dataset.name}, {setup.wanted.split}, {prepared.size[0]}x{prepared.size[1]} px"),
        ("layers", ", ".join(f"{layer} {shape}" for layer, shape in shapes)),
        ("pooling", pooling),
        ("device", setup.device.type),
        ("file", str(out)),
    )
