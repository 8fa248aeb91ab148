"""Writing embeddings: a batch at a time, read back, and only then under their own name.

All is written in a folder beside the file, `.NAME.RANDOM.tmp`, and transformed out of it when it is whole: a kill leaves that folder
and no file that could be taken for one.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from uuid import uuid4

from avtcli.embedding.array_formats import NpzFile, SafetensorsFile
from avtcli.embedding.embedding_rows import Contents, EmbeddingFile, Rows
from avtcli.embedding.parquet_format import ParquetFile, require_pyarrow
from avtcli.errors import AvtError, RunFailedError
from avtcli.storage.files import disk_errors_explained, fsync_folder, refuse_existing

FORMATS: Final[dict[str, type[EmbeddingFile]]] = {".safetensors": SafetensorsFile, ".npz": NpzFile, ".parquet": ParquetFile}
"""The formats, by the suffix of the file."""


def format_of(out: Path) -> type[EmbeddingFile]:
    """The format that a file's suffix asks for.

    Raises:
        AvtError: for another suffix, a file that exists, or Parquet without pyarrow.
    """
    if out.suffix not in FORMATS:
        raise AvtError(f"{out} says no format that embeddings are written in. Expected a file ending in {', '.join(FORMATS)}.")
    if FORMATS[out.suffix] is ParquetFile:
        require_pyarrow()
    refuse_existing(out)
    return FORMATS[out.suffix]


def write_embeddings(out: Path, contents: Contents, batches: Iterable[Rows]) -> int:
    """Write a file, read its first and last batch back, and give it its name.

    Args:
        out: the file; its suffix is the format.
        contents: what it holds.
        batches: its rows in their order, `contents.count` in all; one batch is held at a time, beside the first.

    Returns:
        The size of the file, in bytes.

    Raises:
        AvtError: if it exists, or the disk has not room enough for it; nothing is read of the batches then.
        RunFailedError: if the disk fails, or the file does not hold what was written; no file is left then.
    """
    kind = format_of(out)
    beside = out.with_name(f".{out.name}.{uuid4().hex[:8]}.tmp")
    try:
        with disk_errors_explained(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            _check_room(out, kind.needed_bytes(contents))
            beside.mkdir()
            file = kind(beside / out.name, contents)
        first, last = _write(file, batches, out)
        with disk_errors_explained(out):
            file.close()
            _check_shapes(file, contents, out)
            _check_rows(file, first, 0, out)
            _check_rows(file, last, contents.count - len(last.names), out)
            return _publish(beside / out.name, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise AvtError(
            f"{out} needs {needed / 1e9:.3g} GB on its disk, where {free / 1e9:.3g} GB are free. Give fewer layers, a smaller "
            "--pool-size, --limit-train, or another --out."
        )


def _write(file: EmbeddingFile, batches: Iterable[Rows], out: Path) -> tuple[Rows, Rows]:
    """Write all batches, and return the first and the last."""
    first: Rows | None = None
    for rows in batches:
        first = first or rows
        with disk_errors_explained(out):
            file.write(rows)
    assert first is not None  # no data set is empty
    return first, rows


def _check_shapes(file: EmbeddingFile, contents: Contents, out: Path) -> None:
    found, expected = file.shapes(), contents.shapes
    if found != expected:
        raise RunFailedError(f"{out} was read back and states the shapes {found}, expected {expected}. It was not kept.")


def _check_rows(file: EmbeddingFile, rows: Rows, start: int, out: Path) -> None:
    stop = start + len(rows.names)
    found = file.read(start, stop)
    columns = [name for name, values in rows.columns.items() if found.columns[name].tobytes() != values.tobytes()]
    columns += ["names"] if found.names != rows.names else []
    if columns:
        raise RunFailedError(
            f"{out} was read back, and its rows {start} to {stop - 1} are not what was written ({', '.join(columns)}). It was "
            "not kept: look at its disk, and write it again."
        )


def _publish(written: Path, out: Path) -> int:
    """Wait until a file is on disk, and give it its name."""
    with written.open("rb") as file:
        os.fsync(file.fileno())
    refuse_existing(out)  # one that came meanwhile stays
    os.rename(written, out)
    fsync_folder(out.parent)
    return out.stat().st_size
