"""Mutated files of every kind: read, or refused with one message; in little time and memory, and nothing they name is run."""

import os
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from avtcli.cli.app import app
from avtcli.errors import AvtError
from tests.trust.mutations import CANARY, Kind, kinds, naive_read

MEGABYTES, SECONDS = 200, 2.0
RAW_CONTROLS = {chr(code) for code in (*range(32), *range(127, 160))} - {"\n", "\t"}


class Trap:
    """A pickle that makes a folder when it is loaded by the usual means."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(Path("sprung").absolute()),)


@pytest.fixture
def made(tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Kind]]:
    """The kinds, with a live trap in the folder and no network; both are checked in the end."""

    def refuse(*args: Any) -> None:
        raise AssertionError(f"a connection to {args[1:]} was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    torch.save(Trap(), CANARY)
    yield kinds(tmp_path, tiny_run)
    assert not Path("sprung").exists()
    torch.load(CANARY, weights_only=False)
    assert Path("sprung").is_dir()  # the trap was live


def memory(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1000


def read_one(kind: Kind, path: Path) -> str:
    """How a file ended: read, refused, or what is wrong."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before, began = memory("VmRSS"), time.process_time()
    try:
        kind.read(path)
        ended = "read"
    except AvtError:
        ended = "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    seconds, grown = time.process_time() - began, memory("VmHWM") - before
    if seconds > SECONDS or grown > MEGABYTES:
        return f"{ended} after {seconds:.1f} s and {grown:.0f} MB"
    return ended


def run_mutations(made: dict[str, Kind], folder: Path, count: int, first_seed: int = 0) -> dict[str, Counter[str]]:
    """Read mutated files of each kind in turn; how often each ended how."""
    found: dict[str, Counter[str]] = {name: Counter() for name in made}
    for seed in range(first_seed, first_seed + count):
        name = list(made)[seed % len(made)]
        ended = read_one(made[name], made[name].make(random.Random(seed), folder))
        found[name][ended if ended in ("read", "refused") else f"seed {seed}: {ended}"] += 1
    return found


def check(found: dict[str, Counter[str]]) -> None:
    wrong = {name: ends for name, counts in found.items() if (ends := [end for end in counts if end.startswith("seed")])}
    assert wrong == {}
    for name, counts in found.items():
        assert counts["refused"] > counts.total() / 3, name  # the mutations bite
        assert counts["read"], name  # and a file that stayed valid is read


def test_mutated_files_are_read_or_refused(made: dict[str, Kind], tmp_path: Path) -> None:
    check(run_mutations(made, tmp_path, 240))


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_ten_thousand_mutated_files_are_read_or_refused(made: dict[str, Kind], tmp_path: Path) -> None:
    found = run_mutations(made, tmp_path, 10_000, first_seed=1_000_000)
    for name, counts in found.items():
        print(f"{name:<16} {counts.total():>5} files {counts['read']:>5} read {counts['refused']:>5} refused")
    check(found)


def test_a_reader_without_checks_fails_on_the_same_files(made: dict[str, Kind], tmp_path: Path) -> None:
    naive = Kind(made["export"].make, naive_read, "")
    failed = [end for end in (read_one(naive, naive.make(random.Random(s), tmp_path)) for s in range(80)) if "Error" in end]

    assert len(failed) >= 20


def test_a_command_ends_with_a_message_and_prints_no_control_character(made: dict[str, Kind], tmp_path: Path) -> None:
    for seed, kind in ((seed, kind) for seed in range(8) for kind in made.values()):
        result = CliRunner().invoke(app, kind.line.format(kind.make(random.Random(seed), tmp_path)).split())
        Path("copied.toml").unlink(missing_ok=True)

        assert result.exception is None or isinstance(result.exception, SystemExit), (seed, kind.line)
        assert result.exit_code in (0, 2), (seed, kind.line, result.output)
        assert not RAW_CONTROLS & set(result.output), (seed, kind.line)
