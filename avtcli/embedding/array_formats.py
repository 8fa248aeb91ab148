"""Embeddings as arrays: safetensors, and NumPy's npz.

.safetensors   a float32 tensor a layer, `labels` int64, `split` uint8 (0 train, 1 test); `names` uint8: all names in UTF-8,
               one after the other, and `name_ends` int64: where each ends. The metadata's key `avt` holds JSON.
.npz           the same arrays, but `names` as text without `name_ends`, and `avt`: the JSON, as text.
"""

import json
import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from avtcli.embedding.embedding_rows import FLOAT32, INT64, UINT8, Column, Contents, EmbeddingFile, Rows
from avtcli.storage.files import METADATA_KEY, to_metadata


class SafetensorsFile(EmbeddingFile):
    """Safetensors: the header says beforehand where every row will be, and rows are written in place."""

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path, self.contents, self.names_end = path, contents, 0
        header, self.places = _header(contents)
        path.write_bytes(header)

    @staticmethod
    def needed_bytes(contents: Contents) -> int:
        """The tensors alone."""
        return sum(contents.column_bytes)

    def write(self, rows: Rows) -> None:
        """Each tensor goes on at its place."""
        names = [name.encode() for name in rows.names]
        ends = self.names_end + np.cumsum([len(name) for name in names], dtype=INT64)
        self.names_end = int(ends[-1])
        blobs = {name: values.tobytes() for name, values in {**rows.columns, "name_ends": ends}.items()}
        with self.path.open("r+b") as file:
            for name, blob in {**blobs, "names": b"".join(names)}.items():
                file.seek(self.places[name])
                file.write(blob)
                self.places[name] += len(blob)

    def close(self) -> None:
        """The last row made it whole."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """From the header."""
        with safe_open(self.path, "numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in self.contents.columns}

    def read(self, start: int, stop: int) -> Rows:
        """Slices of the tensors."""
        with safe_open(self.path, "numpy") as file:
            columns = {name: file.get_slice(name)[start:stop] for name in self.contents.columns}
            ends = file.get_slice("name_ends")[start:stop].tolist()
            first = int(file.get_slice("name_ends")[start - 1 : start][0]) if start else 0
            text = file.get_slice("names")[first : ends[-1]].tobytes()
        return Rows([text[a - first : b - first].decode() for a, b in zip([first, *ends[:-1]], ends, strict=True)], columns)

    @staticmethod
    def load_with(path: Path, layer: str, shape: tuple[int, ...]) -> str:
        """All tensors at once, as NumPy arrays."""
        return (
            f"from safetensors.numpy import load_file; arrays = load_file({str(path)!r}); features = arrays[{layer!r}]; "
            "text, ends = arrays['names'].tobytes(), arrays['name_ends'].tolist(); "
            "names = [text[a:b].decode() for a, b in zip([0, *ends], ends)]"
        )


def _header(contents: Contents) -> tuple[bytes, dict[str, int]]:
    """The header, padded to 8 bytes, and where in the file each tensor begins: wide types first, as the library has them."""
    types = {FLOAT32: "F32", INT64: "I64", UINT8: "U8"}
    columns = {**contents.columns, "name_ends": Column(INT64, ())}
    tensors = {name: (column.dtype, (contents.count, *column.shape)) for name, column in columns.items()}
    tensors["names"] = (UINT8, (contents.name_bytes,))
    header: dict[str, Any] = {"__metadata__": to_metadata(contents.about)}
    places, end = {}, 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        places[name], end = end, end + dtype.itemsize * prod(shape)
        header[name] = {"dtype": types[dtype], "shape": shape, "data_offsets": [places[name], end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, {name: 8 + len(text) + place for name, place in places.items()}


class NpzFile(EmbeddingFile):
    """NumPy's archive: each array grows in a file beside, and all are copied into the archive at the end."""

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path, self.contents = path, contents
        self.columns = {**contents.columns, "names": Column(np.dtype(f"<U{contents.longest_name}"), ())}
        self.parts = {name: path.with_name(f"{number}.npy") for number, name in enumerate(self.columns)}
        for name, column in self.columns.items():
            stated = {"descr": column.dtype.str, "fortran_order": False, "shape": (contents.count, *column.shape)}
            with self.parts[name].open("xb") as file:
                np.lib.format.write_array_header_1_0(file, stated)

    @staticmethod
    def needed_bytes(contents: Contents) -> int:
        """The largest array is there twice while it is copied; each name takes as much as the longest."""
        sizes = [*contents.column_bytes[:-1], 4 * contents.count * contents.longest_name]
        return sum(sizes) + max(sizes)

    def write(self, rows: Rows) -> None:
        """Each array grows."""
        for name, values in {**rows.columns, "names": np.array(rows.names, self.columns["names"].dtype)}.items():
            with self.parts[name].open("ab") as file:
                file.write(values.tobytes())

    def close(self) -> None:
        """Make the archive, uncompressed; each array's own file goes when it is in it."""
        with zipfile.ZipFile(self.path, "x") as archive:
            for name, part in self.parts.items():
                archive.write(part, f"{name}.npy")
                part.unlink()
            with archive.open(f"{METADATA_KEY}.npy", "w") as member:
                np.lib.format.write_array(member, np.array(to_metadata(self.contents.about)[METADATA_KEY]))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """From the arrays' headers."""
        with zipfile.ZipFile(self.path) as archive:
            return {name: _read_header(archive, name)[1] for name in self.contents.columns}

    def read(self, start: int, stop: int) -> Rows:
        """Rows of the arrays; what is before them is read past."""
        columns = {}
        with zipfile.ZipFile(self.path) as archive:
            for name, column in self.columns.items():
                offset, _ = _read_header(archive, name)
                with archive.open(f"{name}.npy") as member:
                    member.seek(offset + start * column.row_bytes)
                    content = member.read((stop - start) * column.row_bytes)
                columns[name] = np.frombuffer(content, column.dtype).reshape(-1, *column.shape)
        return Rows(columns.pop("names").tolist(), columns)

    @staticmethod
    def load_with(path: Path, layer: str, shape: tuple[int, ...]) -> str:
        """Each array when it is asked for."""
        return f"import numpy as np; arrays = np.load({str(path)!r}); features, names = arrays[{layer!r}], arrays['names']"


def _read_header(archive: zipfile.ZipFile, name: str) -> tuple[int, tuple[int, ...]]:
    """The length of an array's header, in bytes, and the shape that it states."""
    with archive.open(f"{name}.npy") as member:
        np.lib.format.read_magic(member)
        shape = np.lib.format.read_array_header_1_0(member)[0]
        return member.tell(), shape
