"""Embedding files: read back by the formats' own libraries; and no file at all where something failed."""

import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from avtcli.embedding import embedding_files
from avtcli.embedding.embedding_files import FORMATS, EmbeddingTable, check_room, save_embeddings
from avtcli.errors import AvtError, RunFailedError
from avtcli.storage.files import clear_leftovers

every_format = pytest.mark.parametrize("suffix", list(FORMATS))


def table_of(count: int) -> EmbeddingTable:
    """A table in which every value differs: a map, a vector, labels and split."""
    rows = np.arange(count)
    maps = (rows[:, None] + np.linspace(0, 0.9, 12)).astype(np.float32).reshape(-1, 3, 2, 2)
    vectors = -maps.reshape(count, -1)[:, :5]
    columns = {"map": maps, "vector": vectors, "labels": rows % 3 - 1, "split": (rows % 2).astype(np.uint8)}
    return EmbeddingTable([f"é{i}" for i in rows], columns, {"about": "test"})


def stored(path: Path) -> dict[str, Any]:
    """Read all columns with the format's library."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return {name: np.array(table[name].to_pylist()) for name in table.column_names}
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return dict(archive)
    return safetensors.numpy.load_file(path)


@every_format
@pytest.mark.parametrize("count", [1, 47])
def test_a_table_is_stored_as_documented(suffix: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_files, "GROUP_BYTES", 1500)
    table, out = table_of(count), Path("below") / f"e{suffix}"
    check_room(out, table)
    size = save_embeddings(out, table)
    found = stored(out)
    parquet = suffix == ".parquet"

    assert size == out.stat().st_size
    assert list(Path().rglob("*")) == [Path("below"), out]
    for name in ("map", "vector"):
        assert np.array_equal(found[name].reshape(table.columns[name].shape), table.columns[name])
        assert parquet or found[name].dtype == np.float32
    assert found["label" if parquet else "labels"].tolist() == table.columns["labels"].tolist()
    assert found["split"].tolist() == [(["train", "test"] if parquet else [0, 1])[i % 2] for i in range(count)]
    if suffix == ".safetensors":
        assert [found[name].dtype for name in ("labels", "split", "names", "name_ends")] == [np.int64, "u1", "u1", np.int64]
        assert found["names"].tobytes().decode() == "".join(table.names)
        assert found["name_ends"].tolist() == np.cumsum([len(name.encode()) for name in table.names]).tolist()
    else:
        assert found["name" if parquet else "names"].tolist() == table.names


def test_parquet_has_row_groups_of_a_set_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_files, "GROUP_BYTES", 20 * (12 * 4 + 5 * 4 + 8 + 8 + 8))
    save_embeddings(Path("e.parquet"), table_of(47))
    groups = pq.read_metadata("e.parquet")

    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [20, 20, 7]


@every_format
def test_values_that_are_not_finite_are_stored(suffix: str) -> None:
    table = table_of(3)
    table.columns["vector"][[0, 2], 1] = np.nan, np.inf
    save_embeddings(Path(f"e{suffix}"), table)

    assert np.array_equal(stored(Path(f"e{suffix}"))["vector"], table.columns["vector"], equal_nan=True)


@every_format
def test_the_files_mode_follows_the_umask(suffix: str) -> None:
    save_embeddings(Path(f"e{suffix}"), table_of(3))
    Path("other").touch()

    assert stat.S_IMODE(Path(f"e{suffix}").stat().st_mode) == stat.S_IMODE(Path("other").stat().st_mode)


def changed(table: EmbeddingTable, column: str, row: int) -> EmbeddingTable:
    values = table.columns[column].copy()
    values[row] += 1
    return replace(table, columns={**table.columns, column: values})


DAMAGES = {
    "first row": ("vector", lambda table: changed(table, "vector", 0)),
    "last row": ("map", lambda table: changed(table, "map", -1)),
    "names": ("name", lambda table: replace(table, names=table.names[::-1])),
    "shape": ("map", lambda table: EmbeddingTable(table.names[:40], {n: v[:40] for n, v in table.columns.items()}, {})),
}


@every_format
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_reads_back_otherwise_is_removed(suffix: str, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (column, damaged), real = DAMAGES[damage], FORMATS[suffix]

    def write(path: Path, table: EmbeddingTable) -> Any:
        columns = real.write(path.with_name(f"right{suffix}"), table)
        real.write(path, damaged(table))
        return columns

    monkeypatch.setitem(FORMATS, suffix, replace(real, write=write))
    with pytest.raises(RunFailedError, match=rf"was read back, and .*{column}.* from what was computed. It was removed"):
        save_embeddings(Path(f"e{suffix}"), table_of(47))
    assert list(Path().iterdir()) == []


@every_format
def test_too_little_room_is_reported_with_what_to_do(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3000))

    with pytest.raises(AvtError, match=r"needs 4.*e-06 GB, where 3e-06 GB are free. Give fewer layers"):
        check_room(Path(f"e{suffix}"), table_of(47))
    assert list(Path().iterdir()) == []


@pytest.fixture
def full_disk() -> Iterator[None]:
    """A limit on the size of a file, which every library meets as a disk that fails."""
    handler, (soft, hard) = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@every_format
@pytest.mark.usefixtures("full_disk")
def test_a_disk_that_fails_is_reported_with_the_file(suffix: str) -> None:
    noise = np.random.default_rng(0).random((3000, 100), np.float32)  # nothing to compress
    table = EmbeddingTable([str(i) for i in range(3000)], {"vector": noise}, {})

    with pytest.raises(RunFailedError, match=rf"e{suffix} could not be written: .*File too large"):
        save_embeddings(Path(f"e{suffix}"), table)
    assert list(Path().iterdir()) == []


def test_a_file_that_appeared_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, table: EmbeddingTable) -> Any:
        Path("e.npz").write_text("mine")
        return FORMATS[".safetensors"].write(path, table)

    monkeypatch.setitem(FORMATS, ".npz", replace(FORMATS[".safetensors"], write=write))
    with pytest.raises(AvtError, match=r"e.npz exists already and is not overwritten"):
        save_embeddings(Path("e.npz"), table_of(3))
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [("e.npz", "mine")]


KILLED = """
import os, sys
import numpy as np
from pathlib import Path
from avtcli.embedding.embedding_files import EmbeddingTable, save_embeddings

os.fsync = lambda number: os.kill(os.getpid(), 9)
save_embeddings(Path(sys.argv[1]), EmbeddingTable(["a", "b"], {"vector": np.zeros((2, 3), np.float32)}, {}))
"""


@every_format
def test_a_kill_leaves_no_file_of_that_name(suffix: str) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, f"e{suffix}"], timeout=120, check=False)

    assert ended.returncode == -signal.SIGKILL
    (left,) = Path().iterdir()
    assert left.name.startswith(".tmp-")
    clear_leftovers(Path())
    assert not list(Path().iterdir())
