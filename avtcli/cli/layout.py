"""Text laid out for a terminal: tables, labels with values, and lines that break at spaces only."""

import contextlib
import functools
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

SHORT = 16
"""Characters of a cell that is never split."""
MIN_COLUMNS = 40
"""Columns that lines are laid out for on a narrower terminal."""
NBSP = "\N{NO-BREAK SPACE}"
_FIGURE = re.compile(r"[-+]?[\d.][\d. ]*(e[-+]?\d+)?( ?[%x])?( ± [\d.]+)?( \(\d+ of \d+\))?[* ]?")


def printable(text: str) -> str:
    """Escape what a terminal would obey or could not encode: control characters, and names of files that are not UTF-8."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def width_of(stream: TextIO) -> int | None:
    """Columns of the terminal that a stream is; none for a file or a pipe."""
    if not stream.isatty():
        return None
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        return max(MIN_COLUMNS, os.get_terminal_size(stream.fileno()).columns or 80)
    return None


def wrapped(text: str, room: int | None, indent: str = "", *, keep: str = "  ") -> list[str]:
    """Split a text into lines that fit, at spaces; one that begins with `keep`, such as a command or code, stays whole."""
    if room is None:
        return text.split("\n")
    wrap = functools.partial(textwrap.wrap, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    lines = ([x] if len(x) <= room or x.startswith(keep) else wrap(x, room) for x in text.split("\n"))
    return [*itertools.chain.from_iterable(lines)]


def fact_lines(facts: Iterable[tuple[str, str]], room: int | None) -> list[str]:
    """Lay out labels and values, aligned; what is too long goes on below its value."""
    found = list(facts)
    width = max((len(label) for label, _ in found), default=0) + 2
    return [line for label, value in found for line in wrapped(f"{label:<{width}}{value}", room, " " * width)]


def table_lines(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, best: int | None = None, room: int | None
) -> list[str]:
    """Lay out a table that fits: words to the left, figures to the right, the best row marked.

    Where it is too wide, titles and texts take several lines, then columns go on below under the same first column. Only a word
    that is longer than a line is shortened, in its middle.

    Args:
        header: a title for each column.
        rows: a text for each column.
        best: the row to mark.
        room: columns of the terminal; none for any number.
    """
    table = [[printable(cell).replace(" %", f"{NBSP}%") for cell in row] for row in (header, *rows)]
    if best is not None:
        table[best + 1][0] += " (best)"
    room, columns = room or sys.maxsize, [*zip(*table, strict=True)]
    fits = total_width(max(map(len, column)) for column in columns) <= room
    first, others = (
        _short_words(columns[0], room if fits else room // 2),
        [_short_words(column, room) for column in columns[1:]],
    )
    lines: list[str] = []
    while others or not lines:
        count = len(others)  # those that fit at their least widths
        while count > 1 and total_width(_narrowest(column) for column in (first, *others[:count])) > room:
            count -= 1
        lines += [*([""] if lines else []), *_column_lines([first, *others[:count]], room)]
        others = others[count:]
    return lines


def shortened(word: str, limit: int) -> str:
    """Cut a word in its middle, to at most a number of characters."""
    half = (limit - 1) // 2
    return word if len(word) <= limit else f"{word[:half]}…{word[len(word) - half :]}"


def _short_words(column: Sequence[str], limit: int) -> list[str]:
    return [" ".join(shortened(word, limit) for word in cell.split(" ")) for cell in column]


def _is_figures(column: Sequence[str]) -> bool:
    cells = [cell for cell in column[1:] if cell.strip() not in ("", "-")]
    return all(_FIGURE.fullmatch(cell) for cell in cells)


def _narrowest(column: Sequence[str], *, title_only: bool = False) -> int:
    """The least width: the longest word; of cells that stay on one line, the longest cell."""
    whole = title_only or _is_figures(column)
    texts = [
        *column[0].split(" "),
        *(part for cell in column[1:] for part in ([cell] if whole or len(cell) <= SHORT else cell.split(" "))),
    ]
    return max(map(len, texts), default=0)


def total_width(widths: Iterable[int]) -> int:
    """Return the width of a table, with the gaps between its columns."""
    found = [*widths]
    return sum(found) + 2 * (len(found) - 1)


def _column_lines(columns: Sequence[Sequence[str]], room: int) -> Iterator[str]:
    widths = [max(map(len, column)) for column in columns]
    for title_only in (True, False):  # titles give way first
        least = [_narrowest(column, title_only=title_only) for column in columns]
        while total_width(widths) > room and any(width > low for width, low in zip(widths, least, strict=True)):
            widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
            widths[widest] -= 1
    figures = [_is_figures(column) for column in columns]
    for row in zip(*columns, strict=True):
        parts = [wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        for line in itertools.zip_longest(*parts, fillvalue=""):
            cells = (f"{c:>{w}}" if right else f"{c:<{w}}" for c, w, right in zip(line, widths, figures, strict=True))
            yield "  ".join(cells).rstrip().replace(NBSP, " ")
