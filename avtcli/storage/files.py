"""Atomic writes: a kill or a full disk leaves no partial file."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avtcli.errors import AvtError, RunFailedError

METADATA_KEY = "avt"


def fsync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file that does not exist and wait until it is on disk. The mode follows the umask."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that may exist: the old one stays until the new one is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(partial, content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    fsync_folder(path.parent)


def to_json(value: Any) -> bytes:
    """Encode as indented JSON that ends in a newline; NaN and infinity raise ValueError."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def to_metadata(value: Any) -> dict[str, str]:
    """Build the metadata of a safetensors file: one key, since safetensors writes several in random order."""
    return {METADATA_KEY: json.dumps(value, sort_keys=True)}


def refuse_existing(path: Path, *, flag: str = "--out") -> None:
    """Raise an `AvtError` if a path exists, also as a dangling link."""
    if path.exists() or path.is_symlink():
        raise AvtError(f"{path} exists already and is not overwritten. Choose another {flag}, or move it away.")


@contextlib.contextmanager
def disk_errors_explained(path: Path) -> Iterator[None]:
    """Turn an OSError into a `RunFailedError` with the path and the cause."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or error
        raise RunFailedError(f"{path} could not be written: {cause}. What was saved before is intact.") from error
