"""The index of tar shards: where each image lies and what it is called, found once and kept on disk.

    CACHE/KEY/NAME          a column of the index, see `COLUMNS`, mapped into memory when it is read
    CACHE/KEY/about.json    the other fields of `ShardIndex`

CACHE is $XDG_CACHE_HOME/avt/shards, by default ~/.cache/avt/shards; KEY is a hash of the path, size and time of each shard. An
index that was not used for `DAYS` is deleted when another one is made.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from avtcli.contracts import Notify, name_hash
from avtcli.errors import AvtError
from avtplugins.datasets._shard_samples import LABELS, Sample, read_samples

COLUMNS: Final = {"offsets": "<i8", "sizes": "<i8", "hashes": "<u8", "labels": "<i8", "ends": "<i8", "names": "u1"}
"""Of each image: its place and size in the shard, in bytes, the hash of its name, its label as the index of a text or -1, and
the end of its name in `names`, where the names are joined."""
MAX_TEXTS: Final = 100_000
"""More different texts of .txt members are captions, not labels."""
DAYS: Final = 90
_VERSION: Final = 1
_SECONDS: Final = 10  # between two lines of progress

Shard = tuple[str, int, int]
"""Path, size in bytes and time of change in ns."""


@dataclass(frozen=True)
class ShardIndex:
    """What is known of the images of some shards, in their order.

    Attributes:
        shards: the shards.
        counts: the number of images of each.
        texts: the different labels, in the order in which they were found.
        from_text: how many labels come from .txt members.
        captions: whether these differ so much that they are no labels; then there are no texts.
        left_out: members and samples that are no images, by reason.
        digest: a hash of names, sizes and labels, in hexadecimal.
        columns: see `COLUMNS`.
    """

    shards: list[Shard]
    counts: list[int]
    texts: list[str]
    from_text: int
    captions: bool
    left_out: dict[str, int]
    digest: str
    columns: dict[str, NDArray[Any]]

    def __reduce__(self) -> tuple[Callable[[Path], "ShardIndex"], tuple[Path]]:
        """A process that gets an index maps its files."""
        return _opened, (_folder_of(self.shards),)


def open_index(paths: Sequence[Path], notify: Notify) -> ShardIndex:
    """Open the index of shards, and make it where there is none of the shards as they are now.

    Raises:
        AvtError: if a shard cannot be read or is no tar file of samples, or the index cannot be written.
    """
    shards = [(str(path), stated.st_size, stated.st_mtime_ns) for path in paths for stated in [path.stat()]]
    folder = _folder_of(shards)
    try:
        found = _kept(folder)
        if found is None:
            gigabytes = sum(size for _, size, _ in shards) / 1e9
            notify(f"indexing {len(shards)} shards of {gigabytes:.3g} GB, once, in {folder}")
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):  # one process of a run makes it
                found = _kept(folder) or _make(shards, folder, notify)
    except OSError as error:
        raise AvtError(
            f"The index of the shards cannot be kept in {folder.parent}: {error.strerror or error}. Set XDG_CACHE_HOME to a "
            "folder that can be written, with room for 100 bytes an image."
        ) from error
    with contextlib.suppress(OSError):  # of a cache that is only read
        os.utime(folder)
    return found


def _folder_of(shards: Sequence[Shard]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "avt" / "shards"
    return cache / blake2b(json.dumps([_VERSION, shards]).encode(), digest_size=16).hexdigest()


def _opened(folder: Path) -> ShardIndex:
    found = _kept(folder)
    if found is None:
        raise AvtError(f"The index of the shards in {folder} was deleted or damaged. Start the command again.")
    return found


def _kept(folder: Path) -> ShardIndex | None:
    """Map an index into memory; none if there is none or it is incomplete."""
    try:
        about = json.loads((folder / "about.json").read_bytes())
        about["shards"] = [(path, size, changed) for path, size, changed in about["shards"]]
        lengths = {name: (folder / name).stat().st_size // np.dtype(kind).itemsize for name, kind in COLUMNS.items()}
        if {n for name, n in lengths.items() if name != "names"} != {sum(about["counts"])}:
            return None
        columns = {name: _mapped(folder / name, kind) for name, kind in COLUMNS.items()}
        if lengths["names"] != (columns["ends"][-1] if len(columns["ends"]) else 0):
            return None
        return ShardIndex(**about, columns=columns)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _mapped(path: Path, kind: str) -> NDArray[Any]:
    return np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)


@dataclass
class _Labels:
    """The texts of labels, numbered as they are found."""

    codes: dict[str, int] = field(default_factory=dict)
    from_text: int = 0
    captions: bool = False

    def code(self, sample: Sample) -> int:
        """Return the number of a sample's label, or -1 without one."""
        if sample.label is None or self.captions:
            return -1
        place, text = sample.label
        self.from_text += LABELS[place] == ".txt"
        code = self.codes.setdefault(text, len(self.codes))
        if self.from_text and len(self.codes) > MAX_TEXTS:
            self.captions = True
            self.codes.clear()
        return code


def _make(shards: list[Shard], folder: Path, notify: Notify) -> ShardIndex:
    """Write the index, shard by shard, into a temporary folder that gets the name once it is complete."""
    _prune(folder.parent)
    temporary, shown, counts = Path(tempfile.mkdtemp(dir=folder.parent)), time.monotonic(), list[int]()
    labels, left_out, ends = _Labels(), Counter[str](), 0
    digests = {name: blake2b(digest_size=16) for name in ("hashes", "sizes", "labels")}  # whatever the shards' borders
    try:
        for path, *_ in shards:
            if time.monotonic() - shown > _SECONDS:
                notify(f"indexed {len(counts)} of {len(shards)} shards")
                shown = time.monotonic()
            columns = _columns(path, labels, left_out, ends)
            counts.append(len(columns["ends"]))
            ends += len(columns["names"])
            for name, column in columns.items():
                with open(temporary / name, "ab") as file:
                    column.tofile(file)
                if name in digests:
                    digests[name].update(column.data)
        texts = list(labels.codes)
        digest = blake2b(b"".join(d.digest() for d in digests.values()) + json.dumps(texts).encode(), digest_size=16)
        index = ShardIndex(shards, counts, texts, labels.from_text, labels.captions, dict(left_out), digest.hexdigest(), {})
        about = {name: value for name, value in asdict(index).items() if name != "columns"}
        (temporary / "about.json").write_text(json.dumps(about), encoding="utf-8")
        if _kept(folder) is None:  # else another computer, which the lock may not reach, has made it
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _opened(folder)


def _prune(cache: Path) -> None:
    """Delete the indices that were not used for long, and what writers left that were killed."""
    for found in cache.iterdir():
        with contextlib.suppress(OSError):  # deleted by another process
            if time.time() - found.stat().st_mtime > DAYS * 86_400:
                shutil.rmtree(found) if found.is_dir() else found.unlink()


def _columns(path: str, labels: _Labels, left_out: Counter[str], ends: int) -> dict[str, NDArray[Any]]:
    """Read a shard into columns; its names begin at `ends` in those of all shards."""
    figures, hashes, names = array("q"), bytearray(), bytearray()
    for sample in read_samples(path, left_out):
        assert sample.name is not None
        names += sample.name
        hashes += name_hash(sample.name)
        figures.extend((sample.offset, sample.size, labels.code(sample), ends + len(names)))
    columns = dict(zip(("offsets", "sizes", "labels", "ends"), np.array(figures, "<i8").reshape(-1, 4).T.copy(), strict=True))
    return {**columns, "hashes": np.frombuffer(hashes, "<u8"), "names": np.frombuffer(names, "u1")}
