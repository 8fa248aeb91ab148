"""The index of tar shards: where each image lies and what it is called, found once and kept on disk.

    CACHE/KEY/NAME          a column of the index, see `COLUMNS`, mapped into memory when it is read
    CACHE/KEY/about.json    the other fields of `ShardIndex`

CACHE is $XDG_CACHE_HOME/avt/shards, by default ~/.cache/avt/shards; KEY is a hash of the path, size and time of each shard.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from avtcli.contracts import name_hash
from avtcli.errors import AvtError
from avtplugins.datasets._shard_samples import LABELS, Sample, read_samples

COLUMNS: Final = {"offsets": "<i8", "sizes": "<i8", "hashes": "<u8", "labels": "<i8", "ends": "<i8", "names": "u1"}
"""Of each image: its place and size in the shard, in bytes, the hash of its name, its label as the index of a text or -1, and
the end of its name in `names`, where the names are joined."""
MAX_TEXTS: Final = 100_000
"""More different texts of .txt members are captions, not labels."""
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


def open_index(paths: Sequence[Path]) -> ShardIndex:
    """Open the index of shards, and make it where there is none of the shards as they are now.

    Raises:
        AvtError: if a shard cannot be read or is no tar file of samples, or the index cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "avt" / "shards"
    shards = [(str(path), stated.st_size, stated.st_mtime_ns) for path in paths for stated in [path.stat()]]
    folder = cache / blake2b(json.dumps([_VERSION, shards]).encode(), digest_size=16).hexdigest()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # one process of a run makes it
            found = _kept(folder)
            if found is None:
                shutil.rmtree(folder, ignore_errors=True)
                _make(shards, folder)
                found = _kept(folder)
    except OSError as error:
        raise AvtError(
            f"The index of the shards cannot be kept in {cache}: {error.strerror or error}. Set XDG_CACHE_HOME to a folder "
            "that can be written, with room for 100 bytes an image."
        ) from error
    assert found is not None
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


def _make(shards: list[Shard], folder: Path) -> None:
    """Write the index, shard by shard, into a folder that gets its name once it is complete."""
    gigabytes = sum(size for _, size, _ in shards) / 1e9
    print(f"indexing {len(shards)} shards of {gigabytes:.3g} GB, once, in {folder}", file=sys.stderr, flush=True)
    temporary, shown, counts = Path(tempfile.mkdtemp(dir=folder.parent)), time.monotonic(), list[int]()
    labels, left_out, ends = _Labels(), Counter[str](), 0
    digests = {name: blake2b(digest_size=16) for name in ("hashes", "sizes", "labels")}  # whatever the shards' borders
    try:
        for path, *_ in shards:
            if time.monotonic() - shown > _SECONDS:
                print(f"indexed {len(counts)} of {len(shards)} shards", file=sys.stderr, flush=True)
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
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
