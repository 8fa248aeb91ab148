"""Rows of embeddings, and what a file of them is: the formats are in the modules beside."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

SPLITS: Final = ("train", "test")
"""What the numbers of the column `split` mean."""
FLOAT32: Final = np.dtype("<f4")
INT64: Final = np.dtype("<i8")
UINT8: Final = np.dtype("|u1")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Column:
    """Numbers, so many a row: their type, and the shape of one row."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """What one row takes."""
        return self.dtype.itemsize * prod(self.shape)


@dataclass(frozen=True)
class Contents:
    """What a file is to hold, known before its first row.

    Attributes:
        count: the number of rows, at least one.
        columns: the layers (float32), and where they say something `labels` (int64) and `split` (uint8), by name.
        name_bytes: the length of all names together, in UTF-8.
        longest_name: the length of the longest, in characters.
        about: what the file says of itself, plain JSON.
    """

    count: int
    columns: Mapping[str, Column]
    name_bytes: int
    longest_name: int
    about: Mapping[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each column, (count, *shape)."""
        return {name: (self.count, *column.shape) for name, column in self.columns.items()}

    @property
    def column_bytes(self) -> list[int]:
        """What each column takes, the names last."""
        return [*(self.count * column.row_bytes for column in self.columns.values()), self.name_bytes + 8 * self.count]


@dataclass(frozen=True)
class Rows:
    """Some rows, B of them: their names, and (B, *shape) of each column."""

    names: list[str]
    columns: Mapping[str, Array]


class EmbeddingFile(ABC):
    """A new file that takes rows in their order, holding no more than a few batches of them, and reads them back.

    Args:
        path: of the file, in a folder that is its own until it is closed.
        contents: what it is to hold.
    """

    @abstractmethod
    def __init__(self, path: Path, contents: Contents) -> None: ...

    @staticmethod
    @abstractmethod
    def needed_bytes(contents: Contents) -> int:
        """What it takes on the disk, about, at the moment when it takes most."""

    @abstractmethod
    def write(self, rows: Rows) -> None:
        """Add rows behind those before."""

    @abstractmethod
    def close(self) -> None:
        """End the file, which has all its rows."""

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each column but the names, as the closed file states it."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Rows:
        """Rows of the closed file."""

    @staticmethod
    @abstractmethod
    def load_with(path: Path, layer: str, shape: tuple[int, ...]) -> str:
        """The lines of Python that load one layer, (count, *shape), and the names."""
