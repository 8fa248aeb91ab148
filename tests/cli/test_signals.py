"""A signal in any command: one line, exit code 128 + n, nothing half-written."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avtcli.embedding import embed
from avtcli.exporting import export
from avtcli.probing import probe
from avtcli.storage import files
from tests.support import Result

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def killing(number: int, function: Callable[..., Any], *, call: int = 1) -> Callable[..., Any]:
    """A function that sends this process a signal at the given call of it."""
    calls: list[int] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return run


@pytest.fixture
def bank(avt: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Result]:
    """Run `avt gen-homographies` with a signal after its file is written and before it is on the disk."""

    def run(number: int) -> Result:
        monkeypatch.setattr(files.os, "fsync", killing(number, os.fsync))
        return avt("gen-homographies bank.safetensors --count 10 --size 32")

    return run


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_a_command_with_one_line_and_no_partial_file(bank, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    result = bank(number)

    assert (result.code, result.stdout) == (128 + number, "")
    assert result.stderr == f"Stopped by {number.name}; nothing was written.\n"
    assert os.listdir() == []
    assert signal.getsignal(number) is before


def test_a_signal_that_was_ignored_at_the_start_stays_so(bank) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = bank(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)

    assert result.code == 0
    assert Path("bank.safetensors").exists()


def test_what_was_saved_before_the_signal_is_named(avt, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "write_file", killing(signal.SIGTERM, files.write_file, call=2))
    result = avt(f"probe {tiny_run}/checkpoints/step-0000000009 --limit-train 40 --head knn --no-baseline --out a.json")

    assert result.code == 143
    assert result.stderr.splitlines()[-1] == "Stopped by SIGTERM; a.json was saved before."


@pytest.mark.parametrize(
    ("module", "function", "line"),
    [(export, "compare_loaded", "export {} --out x.safetensors"), (embed, "compute_features", "embed {} --out x.npz")],
)
def test_temporary_files_are_deleted(
    avt, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, line: str
) -> None:
    monkeypatch.setattr(module, function, killing(signal.SIGINT, getattr(module, function)))
    result = avt(line.format(tiny_run))

    assert result.code == 130
    assert os.listdir() == []
