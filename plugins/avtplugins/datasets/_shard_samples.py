"""The samples of a tar shard in WebDataset's layout, read from the headers of its members."""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import BinaryIO, Final, Self

import numpy as np

from avtcli.errors import AvtError, one_line
from avtplugins.datasets._decoding import SUFFIXES

LABELS: Final = (".cls", ".json", ".txt")
"""Suffixes of the members that state a sample's label, the first of them that is there."""
_IMAGES: Final = frozenset(os.fsdecode(suffix) for suffix in SUFFIXES)
_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LONGEST_LABEL: Final = 1_000_000  # bytes of a member
_BLOCK: Final = 512
_UNREADABLE: Final = "The shard {path} cannot be read: {cause}. Check its permissions and the disk, or leave it out."


@dataclass
class Sample:
    """The members that share a key: the path up to the first dot of the file's name.

    Attributes:
        key: the key.
        suffixes: of the members so far.
        name: of the image's member, without a `./` in front; none as long as no image was found.
        offset: of the image in the shard, in bytes.
        size: of the image in bytes.
        label: place of the suffix in `LABELS` and what it states.
    """

    key: str
    suffixes: set[str] = field(default_factory=set)
    name: bytes | None = None
    offset: int = 0
    size: int = 0
    label: tuple[int, str] | None = None


def read_samples(path: str, left_out: Counter[str]) -> Iterator[Sample]:
    """Yield the samples of a shard that have an image, and count the members and samples that are left out by reason.

    Raises:
        AvtError: if the shard cannot be read, is no complete tar file, or has a member twice or the members of a sample apart.
    """
    sample, keys = None, bytearray()  # a hash of each key
    for member, file in _members(path):
        if member.isdir():
            continue
        name = member.name.removeprefix("./")
        key, suffix = _key_and_suffix(name)
        hidden = not key or key.endswith("/")
        if hidden or not member.isreg() or member.issparse():
            left_out["hidden" if hidden else "no regular files"] += 1
            continue
        if sample is None or sample.key != key:
            yield from _with_image(sample, left_out)
            sample = Sample(key)
            keys += _hash(key)
        if suffix in sample.suffixes:
            raise AvtError(f"The shard {path} has the member {name} twice. Write each file once.")
        sample.suffixes.add(suffix)
        if suffix in _IMAGES and sample.name is None:
            sample.name, sample.offset, sample.size = os.fsencode(name), member.offset_data, member.size
        elif suffix in LABELS:
            _add_label(sample, LABELS.index(suffix), member, file, path)
        else:
            left_out[f"further {suffix} of a sample" if suffix in _IMAGES else suffix or "without suffix"] += 1
    yield from _with_image(sample, left_out)
    _refuse_repeats(path, keys)


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Split a member's name at the first dot of its last part; the suffix is in lower case."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, suffix = base.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _with_image(sample: Sample | None, left_out: Counter[str]) -> Iterator[Sample]:
    if sample is not None and sample.name is not None:
        yield sample
    elif sample is not None:
        left_out["samples without an image"] += 1


def _add_label(sample: Sample, place: int, member: tarfile.TarInfo, file: BinaryIO, path: str) -> None:
    """Take the label that a member states, unless a better one is there or the member is too long for one."""
    if member.size > _LONGEST_LABEL or (sample.label is not None and sample.label[0] < place):
        return
    try:
        content = os.pread(file.fileno(), member.size, member.offset_data)
    except OSError as error:
        raise AvtError(_UNREADABLE.format(path=path, cause=error.strerror)) from error
    if LABELS[place] == ".json":
        try:
            stated = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise AvtError(f"{path}: the member {member.name} is no JSON: {error}. Write the shard again.") from error
        label = stated.get("label") if isinstance(stated, dict) else None
        text = str(label) if isinstance(label, str | int) else ""
    else:
        text = content.decode(errors="replace").strip()
    sample.label = (place, text) if text not in ("", "-1") else sample.label  # -1: without a label


class _Member(tarfile.TarInfo):
    """A member whose header is read in a third of the time where it is that of a regular file."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> Self:
        """Read name and size of a regular file; all other headers, and what is not right in one, are for tarfile."""
        try:
            size, checksum = (int(buf[start:end].rstrip(b" \0"), 8) for start, end in ((124, 136), (148, 156)))
            if buf[156:157] != tarfile.REGTYPE or checksum != sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
                raise ValueError
        except ValueError:
            return super().frombuf(buf, encoding or "utf-8", errors)
        name, _, _ = bytes(buf[:100]).partition(b"\0")
        is_posix = buf[257:263] == b"ustar\0"  # in a header of GNU the prefix is something else
        prefix = bytes(buf[345:500]).partition(b"\0")[0] if is_posix else b""
        member = cls(os.fsdecode(prefix + b"/" + name if prefix else name))
        member.size = size
        return member


def _members(path: str) -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
    """Yield the members of a tar file with the open file."""
    try:
        with open(path, "rb") as file:
            start = file.peek(8)
            packed = next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None)
            if packed is not None:
                raise AvtError(
                    f"The shard {path} is compressed with {packed}, so that no image in it can be read alone. Unpack it to a "
                    "plain .tar file; images are compressed already."
                )
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", tarinfo=_Member) as tar:
                while (member := tar.next()) is not None and member.size >= 0:
                    vars(tar)["members"].clear()  # it would keep all of them
                    yield member, file
                if os.pread(file.fileno(), _BLOCK, tar.offset) != bytes(_BLOCK):
                    raise tarfile.ReadError(f"after {tar.offset} bytes there is neither a member nor the end of the archive")
    except AvtError:
        raise
    except OSError as error:
        raise AvtError(_UNREADABLE.format(path=path, cause=error.strerror)) from error
    except Exception as error:  # a damaged file can fail in any way
        found = one_line(error)
        raise AvtError(f"The shard {path} is no complete tar file: {found}. Copy it again, or leave it out.") from error


def _hash(key: str) -> bytes:
    return blake2b(os.fsencode(key), digest_size=8).digest()


def _refuse_repeats(path: str, hashes: bytearray) -> None:
    unique, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    if not (counts > 1).any():
        return
    repeated = unique[counts > 1][0].tobytes()
    key = next(key for key, _ in (_key_and_suffix(member.name) for member, _ in _members(path)) if _hash(key) == repeated)
    raise AvtError(
        f"The shard {path} has the key {key} in two places. The files of a sample follow each other, each "
        "sample is there once: write the shard sorted by name."
    )
