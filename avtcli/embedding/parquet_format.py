"""Embeddings as a table: Parquet.

The columns are `name`, `label` (int64) and `split` (text) where they say something, and one a layer: a flat list of float32, of
a fixed length. The schema's metadata holds JSON under the key `avt`, with the shape of each layer.
"""

from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from avtcli.embedding.embedding_rows import FLOAT32, SPLITS, UINT8, Array, Column, Contents, EmbeddingFile, Rows
from avtcli.errors import AvtError
from avtcli.storage.files import to_metadata

GROUP_BYTES: Final = 32_000_000
"""Of a row group, at least: many small ones would read slowly."""
TITLES: Final = {"labels": "label"}
"""A column of a table is called in the singular."""


def require_pyarrow() -> None:
    """Check that Parquet can be written.

    Raises:
        AvtError: if pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise AvtError(
            f"A .parquet file needs pyarrow, which does not import here ({error}): `pip install 'avtcli[parquet]'`, or write "
            ".safetensors or .npz."
        ) from error


class ParquetFile(EmbeddingFile):
    """Parquet, by pyarrow: rows are held until they make a row group."""

    def __init__(self, path: Path, contents: Contents) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path, self.contents = path, contents
        fields = [pa.field("name", pa.string())]
        fields += [pa.field(TITLES.get(name, name), _type(column)) for name, column in contents.columns.items()]
        self.schema = pa.schema(fields, metadata=to_metadata(contents.about))
        self.writer = pq.ParquetWriter(path, self.schema, use_dictionary=["split"] if "split" in contents.columns else False)
        self.held: list[Any] = []

    @staticmethod
    def needed_bytes(contents: Contents) -> int:
        """As much as the numbers and names: features hardly compress."""
        return sum(contents.column_bytes)

    def write(self, rows: Rows) -> None:
        """Hold rows, and write those that are held as a row group when they are enough."""
        import pyarrow as pa

        columns = [pa.array(rows.names), *(_column(values) for values in rows.columns.values())]
        self.held.append(pa.record_batch(columns, schema=self.schema))
        if sum(batch.nbytes for batch in self.held) >= GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow as pa

        self.writer.write_table(pa.Table.from_batches(self.held, self.schema))
        self.held = []

    def close(self) -> None:
        """Write the last row group and the footer."""
        if self.held:
            self._write_group()
        self.writer.close()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """From the footer; a list of the right length has the shape of its layer."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            count, schema = file.metadata.num_rows, file.schema_arrow
            right = {n: schema.field(TITLES.get(n, n)).type == _type(column) for n, column in self.contents.columns.items()}
        return {name: (count, *(column.shape if right[name] else ())) for name, column in self.contents.columns.items()}

    def read(self, start: int, stop: int) -> Rows:
        """Rows of the row groups that have them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables, first = [], 0
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                if first < stop and start < last:
                    tables.append(file.read_row_group(group).slice(max(0, start - first), min(stop, last) - max(start, first)))
                first = last
        table = pa.concat_tables(tables)
        columns = {n: _values(table[TITLES.get(n, n)], column) for n, column in self.contents.columns.items()}
        return Rows(table["name"].to_pylist(), columns)

    @staticmethod
    def load_with(path: Path, layer: str, shape: tuple[int, ...]) -> str:
        """The whole table, and one layer of it as an array."""
        sides = ", ".join(str(side) for side in shape)
        return (
            f"import pyarrow.parquet as pq; table = pq.read_table({str(path)!r}); names = table['name'].to_pylist(); "
            f"features = table[{layer!r}].combine_chunks().flatten().to_numpy().reshape(-1, {sides})"
        )


def _type(column: Column) -> Any:
    import pyarrow as pa

    if column.dtype == FLOAT32:
        return pa.list_(pa.float32(), prod(column.shape))
    return pa.string() if column.dtype == UINT8 else pa.int64()


def _column(values: Array) -> Any:
    import pyarrow as pa

    if values.dtype == FLOAT32:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), prod(values.shape[1:]))
    return pa.array([SPLITS[number] for number in values.tolist()] if values.dtype == UINT8 else values)


def _values(column: Any, stated: Column) -> Array:
    if stated.dtype == FLOAT32:
        flat: Array = column.combine_chunks().flatten().to_numpy()
        return flat.reshape(-1, *stated.shape)
    values = column.to_pylist()
    return np.array([SPLITS.index(value) for value in values] if stated.dtype == UINT8 else values, stated.dtype)
