"""Files from elsewhere: read within bounds and parsed, or refused with one message that names the file."""

import contextlib
import json
import math
import os
import stat
import tomllib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from avtcli.errors import AvtError

TEXT_BYTES: Final = 8_000_000  # of JSON, as of a header
TOML_BYTES: Final = 1_000_000  # which takes a second to parse
PARTS: Final = 500_000  # values, lists and objects in one JSON document
DEPTH: Final = 32  # of tables within tables
LONGEST: Final = 4096  # characters of one setting, as of a path


@contextlib.contextmanager
def open_regular(path: Path, *, hint: str = "") -> Iterator[BinaryIO]:
    """Open a regular file for reading; nothing else is waited for, as a pipe would be.

    Raises:
        AvtError: with the cause and the hint, where it cannot be opened or read.
    """
    try:
        with _opened(path) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise AvtError(f"{path} cannot be read: it is a pipe or a device, expected a file. {hint}".rstrip())
            yield file
    except (OSError, MemoryError) as error:
        cause = getattr(error, "strerror", None) or "it does not fit in memory"
        raise AvtError(f"{path} cannot be read: {cause}. {hint}".rstrip()) from error


def _opened(path: Path) -> BinaryIO:
    waits_not: int = getattr(os, "O_NONBLOCK", 0)
    try:
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | waits_not))
    except ValueError as error:  # a NUL, or a character that no file name holds
        raise AvtError(f"{str(path)!r} cannot be read: it is no name of a file ({error}).") from error


def read_bytes(path: Path, *, limit: int | None = None, hint: str = "") -> bytes:
    """Read a regular file of at most `limit` bytes, else raise an `AvtError`."""
    with open_regular(path, hint=hint) as file:
        content = file.read(-1 if limit is None else limit + 1)
    if limit is not None and len(content) > limit:
        raise AvtError(f"{path} has more than {limit} bytes, expected a smaller file. {hint}".rstrip())
    return content


def read_text(path: Path) -> str:
    """Read text in UTF-8, or in UTF-16 with a byte order mark as PowerShell writes it; anything else is an `AvtError`."""
    content = read_bytes(path, limit=TOML_BYTES)
    encoding = "utf-16" if content[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise AvtError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8.") from None


def parse_json_object(content: bytes | str, where: object, *, hint: str = "") -> dict[str, Any]:
    """Parse a JSON object whose values JSON and TOML can hold; `where` names it in the `AvtError` that refuses others."""
    try:
        text = content.decode() if isinstance(content, bytes) else content
        if sum(text.count(mark) for mark in "{[,") > PARTS:  # before it takes seconds and a hundred times its size
            raise ValueError(f"it has more than {PARTS} values")
        value = json.loads(text, object_pairs_hook=_unique)
        if not isinstance(value, dict):
            raise ValueError(f"it is a {type(value).__name__}")
    except (ValueError, RecursionError) as error:
        raise AvtError(f"{where} is no JSON object: {error}. {hint}".rstrip()) from error
    check_values(value, where)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("one of its keys stands twice")
    return out


def parse_toml(text: str, where: object) -> dict[str, Any]:
    """Parse TOML; an `AvtError` gives the line that does not parse, or the value that no setting can have."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise AvtError(f"{where} is no TOML: {error}.") from None
    check_values(table, where, longest=LONGEST)
    return table


def check_values(value: Any, where: object, *, longest: int | None = None) -> None:
    """Refuse what cannot be stored and read back: texts that are not UTF-8, numbers that are not finite or exceed 64 bits.

    Raises:
        AvtError: naming the place; also for a text of more than `longest` characters, and for `DEPTH` tables in each other.
    """
    left: list[tuple[tuple[object, ...], Any]] = [((), (value,))]
    while left:
        path, found = left.pop()
        for key, part in found.items() if isinstance(found, Mapping) else enumerate(found):
            problem = _problem(key, longest) or _problem(part, longest)
            if len(path) > DEPTH:
                problem = f"more than {DEPTH} tables or lists in each other"
            if problem:
                at = ".".join(str(step)[:100] for step in (*path, key)[1:5])
                raise AvtError(f"{where} has {problem}{f' at {at!r}' if at else ''}. Correct it.")
            if isinstance(part, (Mapping, list, tuple)):
                left.append(((*path, key), part))


def _problem(value: Any, longest: int | None) -> str | None:
    if isinstance(value, str):
        if longest is not None and len(value) > longest:
            return f"a text of {len(value)} characters, where {longest} are the most,"
        return None if value.isascii() or _is_unicode(value) else "a text that is not UTF-8"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    return "a number of more than 64 bits" if isinstance(value, int) and not -(2**63) <= value < 2**63 else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
