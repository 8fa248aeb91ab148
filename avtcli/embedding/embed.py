"""Embeddings: the features of every image of a data set, in one file, in the order of the data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avtcli.embedding.embedding_files import format_of, write_embeddings
from avtcli.embedding.embedding_rows import SPLITS, Contents
from avtcli.embedding.embedding_setup import Job, Wanted, make_rows, prepare, text_of
from avtcli.errors import AvtError
from avtcli.events import OnEvent, Saved, Started
from avtcli.features.evaluation_target import Subject
from avtcli.models.weights import Source


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
    subject: Subject,
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
    job = prepare(subject, wanted, device=device, workers=workers, on_event=on_event)
    contents = _contents(job, _about(subject, job))
    on_event(Started(_facts(subject, job, out)))
    size = write_embeddings(out, contents, make_rows(job))
    on_event(Saved(out))
    layer = job.layers[0]
    return EmbedResult(
        file=str(out),
        format=out.suffix.removeprefix("."),
        count=job.count,
        layers={layer: contents.shapes[layer] for layer in job.layers},
        labels="labels" in job.columns,
        bytes=size,
        load_with=kind.load_with(out, layer, job.columns[layer].shape),
    )


def _target(source: Source, out: Path | None) -> Path:
    if out is not None:
        return out
    if source.run is None:
        raise AvtError(f"{source.path} is no run, whose folder would take the embeddings: say with --out where they go.")
    return source.run / "embeddings.safetensors"


def _contents(job: Job, about: dict[str, Any]) -> Contents:
    name_bytes, longest = 0, 0
    for part in job.parts:
        for i in part.numbers.tolist():
            name = text_of(part.split.name(i))
            name_bytes, longest = name_bytes + len(name.encode()), max(longest, len(name))
    return Contents(job.count, job.columns, name_bytes, longest, about)


def _about(subject: Subject, job: Job) -> dict[str, Any]:
    """Everything that it takes to know what the numbers are."""
    from avtcli import __version__

    source, pictures, wanted = subject.source, subject.pictures, job.wanted
    return {
        "version": __version__,
        "weights": {
            "path": str(source.path),
            "step": source.about.get("step"),
            "made": source.about.get("weights"),
            "backbone": source.spec.backbone.model_dump(mode="json"),
        },
        "dataset": pictures.dataset.model_dump(mode="json"),
        "fingerprint": pictures.data.fingerprint,
        "classes": pictures.data.classes,
        "split": wanted.split,
        "splits": SPLITS,
        "limit_train": wanted.limit_train,
        "layers": {layer: job.columns[layer].shape for layer in job.layers},
        "pool": wanted.pool,
        "pool_size": None if wanted.pool == "none" else wanted.pool_size,
        "resize": pictures.augment.resize,
        "size": pictures.size,
        "mean": source.spec.mean,
        "std": source.spec.std,
    }


def _facts(subject: Subject, job: Job, out: Path) -> tuple[tuple[str, str], ...]:
    pictures = subject.pictures
    shapes = ((layer, "x".join(str(side) for side in job.columns[layer].shape)) for layer in job.layers)
    pooling = "none" if job.wanted.pool == "none" else f"{job.wanted.pool} to {job.wanted.pool_size}x{job.wanted.pool_size}"
    return (
        ("weights", str(subject.source.path)),
        ("images", f"{job.count} of {pictures.dataset.name}, {job.wanted.split}, {pictures.size[0]}x{pictures.size[1]} px"),
        ("layers", ", ".join(f"{layer} {shape}" for layer, shape in shapes)),
        ("pooling", pooling),
        ("device", job.device.type),
        ("file", str(out)),
    )
