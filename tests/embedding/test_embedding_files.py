"""Files of embeddings: rows in, the same rows out, in little memory; and no file at all where something went wrong."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from avtcli.embedding import parquet_format as table
from avtcli.embedding.embedding_files import FORMATS, write_embeddings
from avtcli.embedding.embedding_rows import FLOAT32, INT64, UINT8, Column, Contents, Rows
from avtcli.errors import AvtError, RunFailedError

BATCH = 10
every_format = pytest.mark.parametrize("suffix", list(FORMATS))


def contents(count: int) -> Contents:
    """What `batches` gives: a map, a vector, labels and split."""
    columns = {"map": Column(FLOAT32, (3, 2, 2)), "vector": Column(FLOAT32, (5,)), "labels": Column(INT64, ())}
    names = [f"é{i}" for i in range(count)]
    size = sum(len(name.encode()) for name in names)
    return Contents(count, {**columns, "split": Column(UINT8, ())}, size, max(map(len, names)), {"about": "test"})


def batches(count: int) -> Iterator[Rows]:
    """Rows whose every number says which row it is in."""
    for start in range(0, count, BATCH):
        rows = np.arange(start, min(start + BATCH, count))
        floats = (rows[:, None] + np.linspace(0, 0.9, 12, dtype=np.float32)).astype(np.float32)
        yield Rows(
            [f"é{i}" for i in rows],
            {
                "map": floats.reshape(-1, 3, 2, 2),
                "vector": floats[:, :5],
                "labels": rows % 3 - 1,
                "split": (rows % 2).astype(np.uint8),
            },
        )


@every_format
@pytest.mark.parametrize("group_bytes", [1, 1500, 10**9])
def test_any_rows_are_read_back_as_they_were_written(suffix: str, group_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "GROUP_BYTES", group_bytes)
    file = FORMATS[suffix](Path(f"e{suffix}"), contents(47))
    for rows in batches(47):
        file.write(rows)
    file.close()
    whole = file.read(0, 47)

    assert file.shapes() == {"map": (47, 3, 2, 2), "vector": (47, 5), "labels": (47,), "split": (47,)}
    for number, rows in enumerate(batches(47)):
        some = file.read(10 * number, 10 * number + len(rows.names))
        for name, values in rows.columns.items():
            assert some.columns[name].dtype == values.dtype
            assert np.array_equal(some.columns[name], values)
            assert np.array_equal(whole.columns[name][10 * number :][: len(values)], values)
        assert some.names == rows.names
    assert whole.names == [f"é{i}" for i in range(47)]


def test_parquet_gathers_batches_into_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    one = next(iter(batches(10)))
    monkeypatch.setattr(table, "GROUP_BYTES", 2 * sum(values.nbytes for values in one.columns.values()))
    write_embeddings(Path("e.parquet"), contents(47), batches(47))
    groups = pq.read_metadata("e.parquet")

    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [20, 20, 7]


@every_format
def test_nothing_is_left_beside_the_file_and_its_size_is_told(suffix: str) -> None:
    out = Path("below") / f"e{suffix}"

    assert write_embeddings(out, contents(47), batches(47)) == out.stat().st_size
    assert list(Path().rglob("*")) == [Path("below"), out]


@every_format
def test_batches_that_fail_leave_nothing(suffix: str) -> None:
    def failing() -> Iterator[Rows]:
        yield from batches(20)
        raise AvtError("photo.jpg does not decode")

    with pytest.raises(AvtError, match=r"photo\.jpg does not decode"):
        write_embeddings(Path(f"e{suffix}"), contents(47), failing())
    assert list(Path().iterdir()) == []


@every_format
@pytest.mark.parametrize("place", [0, 46])
def test_a_file_that_reads_back_otherwise_is_not_kept(suffix: str, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FORMATS[suffix].write

    def damaging(self, rows: Rows) -> None:
        values = rows.columns["vector"].copy()
        values[rows.columns["map"][:, 0, 0, 0] == place, 4] += 1
        real(self, Rows(rows.names, {**rows.columns, "vector": values}))

    monkeypatch.setattr(FORMATS[suffix], "write", damaging)
    with pytest.raises(RunFailedError, match=r"rows (0 to 9|40 to 46) are not what was written \(vector\). It was not kept"):
        write_embeddings(Path(f"e{suffix}"), contents(47), batches(47))
    assert list(Path().iterdir()) == []


@every_format
def test_another_name_is_seen_when_it_is_read_back(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FORMATS[suffix].write
    monkeypatch.setattr(FORMATS[suffix], "write", lambda self, rows: real(self, Rows(rows.names[::-1], rows.columns)))

    with pytest.raises(RunFailedError, match=r"rows 0 to 9 are not what was written \(names\)"):
        write_embeddings(Path(f"e{suffix}"), contents(20), batches(20))


def test_too_few_rows_are_seen_in_the_shapes() -> None:
    with pytest.raises(RunFailedError, match=r"states the shapes \{'map': \(40, 3, 2, 2\).*expected \{'map': \(47, 3, 2, 2\)"):
        write_embeddings(Path("e.parquet"), contents(47), batches(40))


@every_format
def test_too_little_room_is_told_before_anything_is_computed(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3000))

    def unread() -> Iterator[Rows]:
        raise AssertionError
        yield

    with pytest.raises(AvtError, match=r"needs .*e-06 GB on its disk, where 3e-06 GB are free. Give fewer layers"):
        write_embeddings(Path(f"e{suffix}"), contents(47), unread())
    assert list(Path().iterdir()) == []


@every_format
def test_the_room_asked_for_is_about_what_is_taken(suffix: str) -> None:
    size = write_embeddings(Path(f"e{suffix}"), contents(3000), batches(3000))
    asked = FORMATS[suffix].needed_bytes(contents(3000))

    assert 0.9 * size < asked < (2.2 if suffix == ".npz" else 1.3) * size


@every_format
def test_a_disk_that_fails_is_told_with_the_file(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self, rows: Rows) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FORMATS[suffix], "write", full)
    with pytest.raises(RunFailedError, match=rf"e{suffix} could not be written: No space left on device"):
        write_embeddings(Path(f"e{suffix}"), contents(20), batches(20))
    assert list(Path().iterdir()) == []


def test_a_file_that_came_meanwhile_stays() -> None:
    def meanwhile() -> Iterator[Rows]:
        yield from batches(20)
        Path("e.npz").write_text("mine")

    with pytest.raises(AvtError, match=r"e.npz exists already and is not overwritten"):
        write_embeddings(Path("e.npz"), contents(20), meanwhile())
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [("e.npz", "mine")]


SCRIPT = """
import os, sys
from pathlib import Path
import numpy as np
from avtcli.embedding import parquet_format as table
from avtcli.embedding.embedding_files import write_embeddings
from avtcli.embedding.embedding_rows import FLOAT32, Column, Contents, Rows

table.GROUP_BYTES = 4_000_000
SHAPE = (64, 8, 8)  # 4 MB a batch

def write(name, batches, stop=None):
    def made():
        for number in range(batches):
            if number == stop:
                os.kill(os.getpid(), 9)
            yield Rows([f"{number:04}-{i:04}" for i in range(250)], {"map": np.full((250, *SHAPE), number, np.float32)})
    count = 250 * batches
    write_embeddings(Path(name), Contents(count, {"map": Column(FLOAT32, SHAPE)}, 9 * count, 9, {}), made())

def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e3
"""


def in_a_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@every_format
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory where Linux tells it")
def test_twenty_times_the_rows_take_no_more_memory(suffix: str) -> None:
    code = "write('small' + sys.argv[1], 2); small = peak(); write('large' + sys.argv[1], 40); print(peak() - small)"
    ended = in_a_process(code, suffix)

    assert ended.returncode == 0, ended.stderr
    assert Path(f"large{suffix}").stat().st_size > 160e6 or suffix == ".parquet"
    assert float(ended.stdout) < 30


@every_format
def test_a_kill_leaves_no_file_of_that_name(suffix: str) -> None:
    ended = in_a_process("write('e' + sys.argv[1], 4, stop=2)", suffix)

    assert ended.returncode == -signal.SIGKILL
    (left,) = Path().iterdir()
    assert left.name.startswith(f".e{suffix}.")
    assert left.name.endswith(".tmp")
