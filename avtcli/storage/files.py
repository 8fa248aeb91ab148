"""Writing files so that a kill or a full disk never leaves half of one behind."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avtcli.errors import AvtError, RunFailedError

METADATA_KEY = "avt"


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on disk. The mode follows the umask.

    Raises:
        FileExistsError: if the name is taken.
    """
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that may exist: the old one stays until the new one is whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(beside, content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    fsync_folder(path.parent)


def to_json(value: Any) -> bytes:
    """Readable JSON with a newline at its end; NaN and infinity, which JSON has not, raise ValueError."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def to_metadata(value: Any) -> dict[str, str]:
    """What a safetensors file of ours says of itself, under one key: several would come out in a random order."""
    return {METADATA_KEY: json.dumps(value, sort_keys=True)}


def from_metadata(blob: bytes) -> dict[str, Any] | None:
    """What the bytes of a safetensors file, which have parsed as one, say of themselves; none where we did not write it."""
    length = int.from_bytes(blob[:8], "little")
    text = json.loads(blob[8 : 8 + length]).get("__metadata__", {}).get(METADATA_KEY)
    return None if text is None else json.loads(text)


def refuse_existing(path: Path, *, flag: str = "--out") -> None:
    """Refuse to overwrite.

    Raises:
        AvtError: if something is there already.
    """
    if path.exists() or path.is_symlink():
        raise AvtError(f"{path} exists already and is not overwritten. Choose another {flag}, or move it away.")


@contextlib.contextmanager
def disk_errors_explained(path: Path) -> Iterator[None]:
    """Turn a failing disk into a message that names the path and the cause.

    Raises:
        RunFailedError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunFailedError(
            f"{path} could not be written: {error.strerror or error}. What was saved before is intact."
        ) from error
