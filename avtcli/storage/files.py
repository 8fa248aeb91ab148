"""The one writer of files: complete and on disk under their name, or absent; and errors of the disk explained.

    .tmp-HOST-PROCESS-RANDOM/NAME    being written; of a killed writer, deleted by the next one in the folder
    NAME                             complete

Order: write; fsync each file, then the temporary folders; rename; fsync the parent. So a kill or a full disk at any time leaves
no partial file under a name that a reader looks for.
"""

import contextlib
import errno
import filecmp
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from avtcli.errors import AvtError, RunFailedError

METADATA_KEY = "avt"
_STALE_SECONDS = 86_400  # a temporary folder of another host is a killed writer's after a day
_EXISTS = (errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR)


@contextlib.contextmanager
def new_path(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary path for a file or folder that gets the name `path`, once complete and on disk, at the end.

    The folder of `path` is made. A path that exists is kept if it is equal to what was written.

    Args:
        path: the final name.
        replace: whether a file of this name is replaced; the old one stays until the new one is complete.

    Raises:
        AvtError: if another file or folder has the name.
        RunFailedError: if the disk fails.
    """
    with disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent)
        with temporary_folder(path.parent) as folder:
            written = folder / path.name
            yield written
            _sync(folder)
            if replace or not (os.path.lexists(path) and _equal(written, path)):
                _rename(written, path, replace=replace)
                _sync_one(path.parent)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a folder that is deleted at the end, or by the next writer in `parent` if this process is killed."""
    folder = parent / f".tmp-{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_file(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Write a file, see `new_path`. The mode follows the umask."""
    with new_path(path, replace=replace) as written:
        written.write_bytes(content)


def clear_leftovers(folder: Path, *, exclusive: bool = False) -> None:
    """Delete the temporary folders of killed writers; all of them where a lock excludes other writers."""
    for found in folder.glob(".tmp-*"):
        writer = re.fullmatch(r"\.tmp-(.+)-(\d+)-[0-9a-f]{8}", found.name)
        if exclusive or (writer and _has_ended(found, host=writer[1], process=int(writer[2]))):
            shutil.rmtree(found, ignore_errors=True)


def _has_ended(folder: Path, *, host: str, process: int) -> bool:
    if host == socket.gethostname():
        return has_process_ended(process)
    with contextlib.suppress(OSError):
        return time.time() - folder.stat().st_mtime > _STALE_SECONDS
    return True


def has_process_ended(process: int) -> bool:
    """Whether no process of this number runs on this host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is another user's
        return False
    return False


def _sync(folder: Path) -> None:
    """Wait until a folder and all below it are on disk, contents before the folders that name them."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync_one(Path(parent, name))
        _sync_one(Path(parent))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(written: Path, path: Path, *, replace: bool) -> None:
    if not replace:
        refuse_existing(path)
    try:
        os.rename(written, path)
    except OSError as error:
        if error.errno in _EXISTS and not replace:  # made by another process meanwhile
            refuse_existing(path)
        raise


def _equal(a: Path, b: Path) -> bool:
    """Whether two files, or all files in two folders, have the same content."""
    if a.is_file() or b.is_file():
        return a.is_file() and b.is_file() and filecmp.cmp(a, b, shallow=False)
    names, others = ({path.relative_to(top) for path in top.rglob("*")} for top in (a, b))
    return names == others and all(_equal(a / name, b / name) for name in names if (a / name).is_file())


def to_json(value: Any) -> bytes:
    """Encode as indented JSON that ends in a newline; NaN and infinity raise ValueError."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def to_metadata(value: Any) -> dict[str, str]:
    """Build the metadata of a safetensors file: one key, since safetensors writes several in random order."""
    return {METADATA_KEY: json.dumps(value, sort_keys=True)}


def refuse_existing(path: Path, *, flag: str = "--out", advice: str = "") -> None:
    """Check that a file or folder can be made, before what it is to hold is computed.

    Raises:
        AvtError: if the path exists, also as a dangling link, or its folder cannot be written; `advice` is one more thing that
            can be done about a path that exists.
    """
    if os.path.lexists(path):
        ways = ", ".join(filter(None, (f"Choose another {flag}", advice, "or move it away")))
        raise AvtError(f"{path} exists already and is not overwritten. {ways}.")
    refuse_unwritable(path, flag=flag)


def refuse_unwritable(path: Path, *, flag: str = "--out") -> None:
    """Raise an `AvtError` if no file can be made in the folder of a path, or in the one that the folder would be made in."""
    if cause := why_unwritable(path.absolute().parent):
        raise AvtError(f"{path} cannot be written: {cause}. Choose another {flag}, or see to its folder.")


def why_unwritable(folder: Path) -> str | None:
    """Try to write in a folder, or in the one that it would be made in, and return why not; none if that is possible."""
    existing = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return error.strerror or str(error)


@contextlib.contextmanager
def disk_errors_explained(path: Path) -> Iterator[None]:
    """Turn an OSError into a `RunFailedError` with the path and the cause."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or error
        raise RunFailedError(f"{path} could not be written: {cause}. What was saved before is intact.") from error
