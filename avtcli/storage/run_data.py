"""What a run keeps of its data: the lists of its images, and those that could not be used."""

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from avtcli.errors import AvtError
from avtcli.input_files import read_bytes
from avtcli.storage.files import write_file


@dataclass(frozen=True)
class BadImage:
    """An image that a run could not use: its split (train or test), its name there, and why."""

    split: str
    name: str
    reason: str


def write_listings(run: Path, listings: Mapping[str, bytes]) -> None:
    """Write the list of each split's images, see `Split.listing`, to images-SPLIT.gz of a run that is being made."""
    for split, listing in listings.items():
        (run / f"images-{split}.gz").write_bytes(gzip.compress(listing, compresslevel=3, mtime=0))


def read_listing(run: Path, split: str) -> bytes | None:
    """Read the list of a split's images; none if the run has none or it is damaged."""
    try:
        return gzip.decompress(read_bytes(run / f"images-{split}.gz"))
    except (AvtError, OSError, EOFError, zlib.error):
        return None


def append_bad_images(run: Path, found: Sequence[BadImage]) -> list[BadImage]:
    """Add images to bad_images.csv (split, name, reason), each once, and return those that are new.

    Names and reasons are escaped as in JSON, so that any bytes of a file name round-trip and no line break is in a line.
    """
    path, before = run / "bad_images.csv", read_bad_images(run)
    known = {(bad.split, bad.name) for bad in before}
    new = [bad for bad in {(bad.split, bad.name): bad for bad in found}.values() if (bad.split, bad.name) not in known]
    if new:
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([field.name for field in fields(BadImage)])
        rows.writerows([_escape(value) for value in astuple(bad)] for bad in (*before, *new))
        write_file(path, text.getvalue().encode(), replace=True)
    return new


def read_bad_images(run: Path) -> list[BadImage]:
    """Read bad_images.csv; empty if there is none.

    Raises:
        AvtError: if it is not as `append_bad_images` writes it.
    """
    path = run / "bad_images.csv"
    try:
        if not os.path.lexists(path):
            return []
        lines = io.StringIO(read_bytes(path).decode(), newline="")
        return [BadImage(*map(_unescape, row)) for row in list(csv.reader(lines, strict=True))[1:]]
    except (AvtError, ValueError, TypeError, csv.Error) as error:
        raise AvtError(
            f"{path} cannot be read: {error}. It lists images that the run could not use: restore it, or delete it."
        ) from error


def _escape(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8", "backslashreplace").decode()


def _unescape(text: str) -> str:
    return str(json.loads(f'"{text}"'))
