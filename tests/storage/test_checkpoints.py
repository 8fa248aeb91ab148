"""Checkpoints: complete or absent, every byte verified, the newest complete one found."""

import os
import random
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from avtcli.errors import AvtError, RunFailedError
from avtcli.events import Notice
from avtcli.storage.checkpoints import is_complete, list_checkpoints, load_checkpoint, load_newest, save_checkpoint
from avtcli.storage.files import clear_leftovers

FILES = ("model.safetensors", "state.safetensors", "state.json", "manifest.json")


def write(root: Path, step: int, value: float = 1.0) -> Path:
    tensors = {"weight": torch.full((3, 4), value), "count": torch.tensor(step)}
    return save_checkpoint(root, step, model=tensors, state={"0.momentum": torch.ones(2)}, about={"note": "é"})


def test_tied_weights_are_stored_under_each_name(tmp_path: Path) -> None:
    tied = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    tied["b"].weight = tied["a"].weight
    loaded = load_checkpoint(save_checkpoint(tmp_path, 1, model=tied.state_dict(), state={}, about={})).model
    before = tied["a"].weight.detach().clone()
    torch.nn.init.zeros_(tied["a"].weight)
    tied.load_state_dict(loaded)

    assert torch.equal(loaded["b.weight"], before)
    assert torch.equal(tied["a"].weight, before)
    assert tied["b"].weight is tied["a"].weight


def test_a_saved_checkpoint_loads_with_equal_content(tmp_path: Path) -> None:
    loaded = load_checkpoint(write(tmp_path, 7, 2.5))

    assert torch.equal(loaded.model["weight"], torch.full((3, 4), 2.5))
    assert torch.equal(loaded.state["0.momentum"], torch.ones(2))
    assert (loaded.about["step"], loaded.about["note"]) == (7, "é")


def test_two_checkpoints_are_kept_and_the_highest_step_is_newest(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write(tmp_path, step)
    (tmp_path / "step-abc").mkdir()
    (tmp_path / "step-7.bak").mkdir()
    (tmp_path / "._step-3").touch()

    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-0000000100", "step-0000000010"]
    assert load_newest(tmp_path).about["step"] == 100


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    first = {file: (write(tmp_path, 3) / file).read_bytes() for file in FILES}
    shutil.rmtree(tmp_path / "step-0000000003")

    assert {file: (write(tmp_path, 3) / file).read_bytes() for file in FILES} == first


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["cut", "flip", "delete", "empty"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path, file: str, how: str) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 2) / file
    blob = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
    else:
        blob[len(blob) // 2] ^= 4
        path.write_bytes({"cut": path.read_bytes()[: len(blob) // 2], "flip": bytes(blob), "empty": b""}[how])
    events: list[object] = []

    assert load_newest(tmp_path, on_event=events.append).about["step"] == 1
    assert isinstance(events[0], Notice)
    assert events[0].text.startswith("step-0000000002 is damaged and is skipped: ")


def test_any_flipped_bit_is_detected(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    generator = random.Random(0)
    for file in FILES[:3]:
        original = (folder / file).read_bytes()
        for _ in range(60):
            changed = bytearray(original)
            changed[generator.randrange(len(original))] ^= 1 << generator.randrange(8)
            (folder / file).write_bytes(bytes(changed))
            with pytest.raises(AvtError, match="its hash differs"):
                load_checkpoint(folder)
        (folder / file).write_bytes(original)
    load_checkpoint(folder)


def test_without_a_complete_checkpoint_the_message_states_why(tmp_path: Path) -> None:
    with pytest.raises(AvtError, match="has no complete checkpoint: there is none"):
        load_newest(tmp_path)
    (write(tmp_path, 1) / "model.safetensors").write_bytes(b"x")
    with pytest.raises(AvtError, match=r"has no complete checkpoint, the newest: .*was cut short"):
        load_newest(tmp_path)


def test_another_format_is_refused_with_both_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, 1)
    monkeypatch.setattr("avtcli.storage.checkpoints.FORMAT", 2)
    with pytest.raises(AvtError, match="has checkpoint format 1, this avt reads format 2"):
        load_checkpoint(folder)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = write(tmp_path, 1)
    finally:
        os.umask(before)

    assert {stat.S_IMODE((folder / file).stat().st_mode) for file in FILES} == {0o666 & ~umask}


@pytest.mark.parametrize("call", ["os.fsync", "os.rename"])
def test_a_failing_disk_is_reported_and_keeps_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write(tmp_path, 1)

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(f"avtcli.storage.files.{call}" if call == "os.fsync" else call, fail)
        with pytest.raises(RunFailedError, match=r"step-0000000002 could not be written: No space left on device\. .*intact"):
            write(tmp_path, 2)

    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]
    load_checkpoint(tmp_path / "step-0000000001")


def damage(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def test_a_damaged_checkpoint_of_the_step_that_is_saved_is_set_aside_and_saved_again(tmp_path: Path) -> None:
    for _ in range(2):
        damage(write(tmp_path, 2))
    write(tmp_path, 2, 3.5)

    assert torch.equal(load_checkpoint(tmp_path / "step-0000000002").model["weight"], torch.full((3, 4), 3.5))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-0000000002", "step-0000000002.damaged", "step-0000000002.damaged1"]


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(tmp_path: Path) -> None:
    shutil.copytree(write(tmp_path, 3), tmp_path / "step-0000000004")
    events: list[object] = []

    assert load_newest(tmp_path, repair=True, on_event=events.append).folder.name == "step-0000000003"
    assert isinstance(events[0], Notice)
    assert "set aside as step-0000000004.damaged" in events[0].text
    assert load_checkpoint(write(tmp_path, 4, 2.0)).about["step"] == 4


def test_pruning_keeps_two_complete_ones_whatever_is_damaged(tmp_path: Path) -> None:
    write(tmp_path, 3)
    for step in (8, 9):
        shutil.copytree(tmp_path / "step-0000000003", tmp_path / f"step-000000000{step}")
        damage(tmp_path / f"step-000000000{step}")
    write(tmp_path, 5)

    assert [path.name for path in list_checkpoints(tmp_path) if is_complete(path)] == ["step-0000000005", "step-0000000003"]
    write(tmp_path, 6)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000000006", "step-0000000005"]


def test_leftovers_are_cleared_of_writers_that_ended_and_of_no_other(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host, parent = socket.gethostname(), os.getppid()
    names = [
        f".tmp-{host}-{ended.pid}-0123abcd",
        f".tmp-{host}-{parent}-0123abcd",
        f".tmp-other-{ended.pid}-0123abcd",
        ".tmp-mine",
    ]
    for name in names:
        (tmp_path / name).mkdir()
    write(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], "step-0000000001"])

    os.utime(tmp_path / names[2], (0, 0))
    clear_leftovers(tmp_path)
    assert not (tmp_path / names[2]).exists()
    clear_leftovers(tmp_path, exclusive=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000000001"]


def test_files_are_synced_before_rename_and_pruning_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    log: list[tuple[str, str]] = []

    def spied(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def spy(first: Any, *rest: Any, **named: Any) -> Any:
            log.append((name, Path(os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else first).name))
            return call(first, *rest, **named)

        return spy

    for name in ("fsync", "rename"):
        monkeypatch.setattr(os, name, spied(name, getattr(os, name)))
    monkeypatch.setattr(shutil, "rmtree", spied("rmtree", shutil.rmtree))
    write(tmp_path, 3)

    assert {entry for entry in log[:4]} == {("fsync", file) for file in FILES}
    assert log[4] == ("fsync", "step-0000000003")
    assert [entry[0] for entry in log[5:]] == ["fsync", "rename", "fsync", "rmtree", "rename", "rmtree"]
    assert [entry[1] for entry in log[6:8]] == ["step-0000000003", tmp_path.name]
    assert log[9][1] == "step-0000000001"
