"""Embedding files: safetensors, NumPy's npz and Parquet, written by their libraries and read back before they are published.

.safetensors   a float32 tensor per layer, `labels` int64, `split` uint8 (0 train, 1 test); `names` uint8: all names in UTF-8,
               one after the other, and `name_ends` int64: where each ends. The metadata's key `avt` holds JSON.
.npz           the same arrays, but `names` as text without `name_ends`, and `avt`: the JSON, as text.
.parquet       columns `name`, `label` int64, `split` (text), and per layer a flat float32 list of fixed length. The schema's
               metadata holds the JSON under the key `avt`, with the shape of each layer.
"""

import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from avtcli.errors import AvtError, RunFailedError
from avtcli.storage.files import METADATA_KEY, disk_errors_explained, new_path, refuse_existing, to_metadata

SPLITS: Final = ("train", "test")  # what the values of the column `split` mean
RESERVED: Final = {"labels", "label", "split", "names", "name", "name_ends", METADATA_KEY, "file", "allow_pickle"}
"""Names that no layer may have: those of other columns, and parameters of `numpy.savez`."""
GROUP_BYTES: Final = 32_000_000  # of a row group in a Parquet file

Array = np.ndarray[Any, Any]
Columns = Mapping[str, Array]
ColumnEnds = dict[str, tuple[tuple[int, ...], list[Any]]]
"""The shape of each stored column, and its first and last row."""


@dataclass(frozen=True)
class EmbeddingTable:
    """Content of an embedding file: the names of N images, columns, and metadata as plain JSON.

    Columns are arrays (N, ...): the layers (float32), and where present `labels` (int64) and `split` (uint8).
    """

    names: list[str]
    columns: Columns
    about: Mapping[str, Any]


@dataclass(frozen=True)
class EmbeddingFormat:
    """A file format: functions that write a table, returning the columns as stored, and read its ends back.

    `load_with` is Python code that loads a layer and the names, with the fields path, layer, and sides (of the layer's shape).
    """

    write: Callable[[Path, EmbeddingTable], Columns]
    read_ends: Callable[[Path], ColumnEnds]
    load_with: str


def format_of(out: Path) -> EmbeddingFormat:
    """Look up the format of a new file by its suffix; refuse a file that exists, and Parquet without pyarrow."""
    if out.suffix not in FORMATS:
        raise AvtError(f"{out} has no known embedding format. Expected a file ending in {', '.join(FORMATS)}.")
    if out.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise AvtError(
                f".parquet needs pyarrow, whose import failed ({error}): `pip install 'avtcli[parquet]'`, or write "
                ".safetensors or .npz."
            ) from error
    refuse_existing(out)
    return FORMATS[out.suffix]


def check_room(out: Path, table: EmbeddingTable) -> None:
    """Refuse a table that the disk has no room for; its features need not be computed yet."""
    with disk_errors_explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
    needed = sum(values.nbytes for values in table.columns.values()) + sum(len(name) + 8 for name in table.names)
    if needed > free:
        raise AvtError(
            f"{out} needs {needed / 1e9:.3g} GB, where {free / 1e9:.3g} GB are free. Give fewer layers, a smaller --pool-size, "
            "--limit-train, or another --out."
        )


def save_embeddings(out: Path, table: EmbeddingTable) -> int:
    """Write a table, read it back, publish it, and return its bytes.

    Raises:
        AvtError: if the file exists.
        RunFailedError: if the disk fails, or the file does not hold the table; no file is left then.
    """
    kind = format_of(out)
    with new_path(out) as path:
        stored = kind.write(path, table)
        expected = {name: (values.shape, values[[0, -1]].tolist()) for name, values in stored.items()}
        found = kind.read_ends(path)
        different = [name for name in expected if repr(found.get(name)) != repr(expected[name])]  # NaN equals NaN
        if different:
            raise RunFailedError(
                f"{out} was read back, and {', '.join(different)} differ from what was computed. It was removed: check the "
                "disk."
            )
    return out.stat().st_size


def _write_safetensors(path: Path, table: EmbeddingTable) -> Columns:
    names = [name.encode() for name in table.names]
    ends = np.cumsum([len(name) for name in names], dtype=np.int64)
    columns = {**table.columns, "names": np.frombuffer(b"".join(names), np.uint8), "name_ends": ends}
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(columns, path, to_metadata(table.about))
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(str(error)) from error
    path.chmod(mode)  # the library sets 0600 whatever the umask
    return columns


def _read_safetensors(path: Path) -> ColumnEnds:
    found: ColumnEnds = {}
    with safe_open(path, "numpy") as file:
        for name in file.keys():
            stored = file.get_slice(name)
            count, *sides = stored.get_shape()
            found[name] = ((count, *sides), [stored[i : i + 1][0].tolist() for i in (0, count - 1)])
    return found


def _write_npz(path: Path, table: EmbeddingTable) -> Columns:
    columns = {**table.columns, "names": np.array(table.names)}
    np.savez(path, **columns, **{METADATA_KEY: np.array(to_metadata(table.about)[METADATA_KEY])})  # type: ignore[arg-type]
    return columns


def _read_npz(path: Path) -> ColumnEnds:
    found: ColumnEnds = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:  # `numpy.load` would read arrays that exceed the memory
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                start, row_bytes = file.tell(), dtype.itemsize * prod(shape[1:])
                places = (start, start + (shape[0] - 1) * row_bytes) if shape else ()
                rows = [file.read(row_bytes) for place in places if file.seek(place)]
            found[member.removesuffix(".npy")] = (shape, [np.frombuffer(r, dtype).reshape(shape[1:]).tolist() for r in rows])
    return found


def _write_parquet(path: Path, table: EmbeddingTable) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    layers = {name: values.reshape(len(values), -1) for name, values in table.columns.items() if values.ndim > 1}
    columns: dict[str, Array] = {"name": np.array(table.names, object), **layers}
    if "labels" in table.columns:
        columns["label"] = table.columns["labels"]
    if "split" in table.columns:
        columns["split"] = np.array(SPLITS, object)[table.columns["split"]]
    flat = {name: pa.array(values.ravel()) for name, values in columns.items()}
    lists = {name: pa.FixedSizeListArray.from_arrays(flat[name], v.shape[1]) for name, v in columns.items() if v.ndim == 2}
    rows = max(1, GROUP_BYTES // sum(values[:1].nbytes for values in columns.values()))
    dictionary = ["split"] if "split" in columns else False
    content = pa.table({**flat, **lists}, metadata=to_metadata(table.about))
    pq.write_table(content, path, row_group_size=rows, use_dictionary=dictionary)
    return columns


def _read_parquet(path: Path) -> ColumnEnds:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        count, last = file.metadata.num_rows, file.read_row_group(file.num_row_groups - 1)
        ends = pa.concat_tables([file.read_row_group(0).slice(0, 1), last.slice(len(last) - 1)])
    sides = {f.name: (f.type.list_size,) if pa.types.is_fixed_size_list(f.type) else () for f in ends.schema}
    return {name: ((count, *sides[name]), ends[name].to_pylist()) for name in ends.column_names}


FORMATS: Final = {
    ".safetensors": EmbeddingFormat(
        _write_safetensors,
        _read_safetensors,
        "from safetensors.numpy import load_file; arrays = load_file({path!r}); features = arrays[{layer!r}]; "
        "text, ends = arrays['names'].tobytes(), arrays['name_ends'].tolist(); "
        "names = [text[a:b].decode() for a, b in zip([0, *ends], ends)]",
    ),
    ".npz": EmbeddingFormat(
        _write_npz,
        _read_npz,
        "import numpy as np; arrays = np.load({path!r}); features, names = arrays[{layer!r}], arrays['names']",
    ),
    ".parquet": EmbeddingFormat(
        _write_parquet,
        _read_parquet,
        "import pyarrow.parquet as pq; table = pq.read_table({path!r}); names = table['name'].to_pylist(); "
        "features = table[{layer!r}].combine_chunks().flatten().to_numpy().reshape(-1, {sides})",
    ),
}
"""The formats, by the suffix of the file."""
