"""`avt runs` from the command line."""

import json
import os
import pty
import subprocess
import sys
import termios
from dataclasses import asdict
from pathlib import Path

import pytest

from avtcli.reporting.run_list import describe_runs
from tests.reporting.test_comparison import made, probed
from tests.reporting.test_run_list import CONFIG, with_files

NAME = "20260101-120000-fashion-mini-nin-avt"


def write_run() -> None:
    probed(with_files(made(Path("runs", NAME), config=CONFIG)), "1", 70)


def test_the_table_and_the_json_list_every_run(avt) -> None:
    write_run()
    with_files(made(Path("runs/torn"), config="seed = "))
    table, document = avt("runs"), avt("runs runs --json")

    header, *rows = table.stdout.splitlines()
    for title in ("run", "state", "step", "MACE px", "k-NN %", "probe %", "data", "backbone", "objective", "transform", "seed"):
        assert title in header
    (row,) = (row for row in rows if row.startswith(NAME))
    assert row.split()[1:] == "complete 4/4 12.00 80.0 70.0 conv2 knn cifar10 nin avt affine 7".split()
    assert "newest: torn, taken where no run is given" in rows
    assert not any("no room" in row for row in rows)
    assert any(row.startswith("torn is damaged: runs/torn/config.toml is no TOML") for row in rows)
    assert document.json == [asdict(run) for run in describe_runs(Path("runs"))]


def test_no_runs_are_an_empty_list_and_a_missing_folder_is_an_error(avt) -> None:
    assert (avt("runs").code, avt("runs --json").json) == (0, [])
    assert "There is no run under runs" in avt("runs").stdout
    result = avt("runs nowhere")
    assert (result.code, result.stdout) == (2, "")


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_every_line_fits_a_terminal_and_names_and_states_stay(columns: int) -> None:
    write_run()
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    command = [sys.executable, "-m", "avtcli", "runs"]
    subprocess.run(command, stdout=slave, stderr=slave, check=True)
    os.close(slave)
    lines = os.read(master, 100_000).decode().splitlines()
    os.close(master)

    assert max(map(len, lines)) <= columns
    assert lines[0].split()[:2] == ["run", "state"]
    assert lines[1].split()[:2] == [NAME, "complete"]
    assert "MACE" in lines[0]
    assert ("k-NN" in lines[0], "probe" in lines[0], "data" in lines[0]) == (columns >= 80, columns >= 80, columns >= 100)
    (note,) = (line for line in " ".join(" ".join(lines).split()).split("no room here for ")[1:])
    shown = lines[0].replace("MACE px", "MACE_px").split()
    for title in ("step", "data", "objective", "transform", "seed"):
        assert (title in note.split(":")[0].split(", ")) == (title not in shown)


def test_a_list_loads_no_torch() -> None:
    write_run()
    code = "import sys; from avtcli.cli.app import app; app(['runs', '--json'], standalone_mode=False); "
    ended = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    document, loaded = ended.stdout.rsplit("]", 1)

    assert json.loads(document + "]")[0]["name"] == NAME
    assert loaded.strip() == "False"
