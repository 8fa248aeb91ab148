"""Images in tar shards, WebDataset's layout."""

import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avtcli.contracts import ImageData, Notify, name_hash
from avtcli.errors import AvtError
from avtplugins.datasets._decoding import Decoding
from avtplugins.datasets._encoded import MAX_BYTES, EncodedSplit
from avtplugins.datasets._files import silent
from avtplugins.datasets._own_images import WHITE, Channels, Colour, Figures, own_images, sorted_classes
from avtplugins.datasets._shard_index import ShardIndex, open_index

EXPECTED: Final = "plain .tar files in WebDataset's layout, as in `shards:'data-{000..099}.tar'` or `shards:'data-*.tar'`"


def expand(pattern: str) -> list[str]:
    """Expand braces as bash does: `{000..099}`, which keeps the leading zeros, and `{a,b}`."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        first, last = int(bounds[1]), int(bounds[2])
        width = max(len(bound) for bound in bounds.groups()) if re.match("0.", bounds[1]) or re.match("0.", bounds[2]) else 0
        parts = [f"{number:0{width}}" for number in range(first, last + 1)]
    else:
        parts = found[1].split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [path for part in parts for path in expand(before + part + after)]


def find_shards(pattern: Path) -> list[Path]:
    """Return the shards of a pattern, in the order of its braces, those of a glob sorted by name.

    Raises:
        AvtError: if one that the braces name is missing, or none is found.
    """
    if pattern.is_dir():
        raise AvtError(f"The shards {pattern} are a folder. Expected {EXPECTED}: name the files, as in '{pattern}/*.tar'.")
    names = [str(pattern)] if pattern.exists() else expand(str(pattern))
    found = {name: [name] if os.path.isfile(name) else sorted(glob.glob(name)) for name in names}
    missing = [name for name, paths in found.items() if not paths]
    if missing or not found:
        what = f"{len(missing)} of the {len(names)} shards {pattern} are" if len(names) > 1 else "The shards are"
        raise AvtError(f"{what} missing, the first is {next(iter(missing), pattern)}. Expected {EXPECTED}.")
    return [Path(path) for path in dict.fromkeys(path for paths in found.values() for path in paths)]


class ShardSplit(EncodedSplit):
    """A split whose images are members of tar files, each read by its place.

    Nothing of an image lies in memory but what its index maps, which reader processes share, and its label.

    Args:
        index: of the shards.
        classes: names of the labels, or none for a split without.
    """

    def __init__(self, index: ShardIndex, classes: tuple[str, ...] | None) -> None:
        self.index, self.digest = index, bytes.fromhex(index.digest)
        self.firsts = np.array([0, *accumulate(index.counts)])
        top = os.path.commonpath([os.path.dirname(path) for path, *_ in index.shards])
        self.places = [os.path.relpath(path, top) for path, *_ in index.shards]
        self.labels: Tensor | None = None
        if classes is not None:
            number = {text: i for i, text in enumerate(classes)}
            numbers = np.array([*(number[text] for text in index.texts), -1])  # the last is that of no label
            self.labels = torch.from_numpy(numbers[self.index.columns["labels"]])

    def __len__(self) -> int:
        return len(self.index.columns["ends"])

    def name(self, i: int) -> str:
        """The path of the shard, from the folder that has all of them, and the member's name in it."""
        return f"{self.places[self._shard(i)]}/{self._member(i)}"

    def find(self, names: Collection[str]) -> Iterator[tuple[int, str]]:
        """Yield index and name of the images that have one of these names, found by the hash of what may be the member's."""
        ends = {name[i + 1 :] for name in names for i, character in enumerate(name) if character == "/"}
        hashes = [name_hash(os.fsencode(end)) for end in ends]
        likely = np.flatnonzero(np.isin(self.name_hashes(), np.frombuffer(b"".join(hashes), "<u8")))
        return ((i, name) for i in likely.tolist() if (name := self.name(i)) in names)

    def name_hashes(self) -> NDArray[np.uint64]:
        """Those of the members' names, so that the same images in a folder are held out alike."""
        return self.index.columns["hashes"]

    def _shard(self, i: int) -> int:
        return int(np.searchsorted(self.firsts, i, side="right")) - 1

    def _member(self, i: int) -> str:
        ends = self.index.columns["ends"]
        return os.fsdecode(self.index.columns["names"][ends[i - 1] if i else 0 : ends[i]].tobytes())

    @contextmanager
    def opened(self, i: int) -> Iterator[tuple[BinaryIO, str]]:
        """Read image i from its shard, with both names; see `EncodedSplit`."""
        path, *stated = self.index.shards[self._shard(i)]
        name, (offset, size) = f"{path}/{self._member(i)}", (int(self.index.columns[key][i]) for key in ("offsets", "sizes"))
        if size > MAX_BYTES:
            raise AvtError(f"{name} has {size} bytes: expected an image of at most {MAX_BYTES // 1_000_000} MB.")
        try:
            with open(path, "rb", buffering=0) as shard:
                found = os.fstat(shard.fileno())
                if [found.st_size, found.st_mtime_ns] != stated:
                    raise AvtError(f"The shard {path} was changed after it was indexed. Start the command again.")
                content = os.pread(shard.fileno(), size, offset)
        except OSError as error:
            raise AvtError(f"{name} was listed and cannot be read now: {error.strerror}. Check its disk.") from error
        yield BytesIO(content), name


def shards(
    path: Path,
    /,
    *,
    notify: Notify = silent,
    test: Path | None = None,
    labels: Literal["auto", "none"] = "auto",
    channels: Channels = "auto",
    orient: bool = True,
    background: Colour = WHITE,
    mean: Figures = None,
    std: Figures = None,
) -> ImageData:
    """Images in tar files, WebDataset's layout: the files of a sample share their name up to the first dot.

    A sample is an image, by its suffix, with a label where it has a `.cls`, a `.json` with a "label" or a `.txt`. The headers
    are read once, and an index is kept in $XDG_CACHE_HOME or ~/.cache; then each image is read by its place, in any order, and
    nothing is extracted. On a disk or a network storage that is slow at that, copy the shards to a local SSD. Without `test`
    5 % of the images are held out.

    Args:
        path: the shards, with `{000..099}`, `{a,b}`, `*`, `?` and `[0-9]`; in quotes for the shell.
        notify: receives lines of text while an index is made.
        test: those of the test split, likewise.
        labels: auto, or none to read no labels.
        channels: 1 for grey, 3 for RGB; auto takes 1 where all sampled images are grey.
        orient: apply the EXIF orientation of photographs.
        background: RGB colour, 0 to 255, under transparent pixels.
        mean: per channel, for normalisation; left out, that of a sample of the images.
        std: per channel, for normalisation; left out, that of a sample of the images.
    """
    paths = [find_shards(pattern) for pattern in (path, test) if pattern is not None]
    if both := set(paths[0]).intersection(*paths[1:]) if test else None:
        raise AvtError(f"The shard {min(both)} is in the training and in the test split. Give dataset.test other shards.")
    indices = [open_index(found, notify) for found in paths]
    for index in indices:
        if not sum(index.counts):
            others = f" (others: {', '.join(index.left_out)})" if index.left_out else ""
            raise AvtError(f"The shards from {index.shards[0][0]} have no images{others}. Expected {EXPECTED}.")
    classes, stated = (None, "none (dataset.labels)") if labels == "none" else _classes(indices)
    splits = [ShardSplit(index, classes) for index in indices]
    notes = [f"shards: {len(indices[0].shards)}", *(["splits: train and test"] if test else []), f"labels: {stated}"]
    left_out = sum((Counter(index.left_out) for index in indices), Counter[str]())
    facts: dict[str, Any] = {"classes": classes, "notes": tuple(notes), "left_out": left_out}
    how = Decoding(orient=orient, background=background)
    return own_images(splits[0], splits[1] if test else None, how, channels, mean=mean, std=std, **facts)


def _classes(indices: Sequence[ShardIndex]) -> tuple[tuple[str, ...] | None, str]:
    """Return the classes of all splits, or none, and what to say of them: texts that hardly repeat are captions."""
    classes, images = sorted_classes(text for index in indices for text in index.texts), sum(sum(i.counts) for i in indices)
    mostly_text = 2 * min(sum(index.from_text for index in indices), len(classes)) > images
    if mostly_text or any(index.captions for index in indices):
        return None, "none, as the .txt files differ like captions"
    return (classes, f"{len(classes)} classes") if classes else (None, "none")
