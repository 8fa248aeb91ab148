"""Run folders: created once, locked while in use, with complete lines of metrics."""

import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from avtcli.errors import AvtError, RunFailedError
from avtcli.events import Event, Notice
from avtcli.runtime.environment import environment_changes
from avtcli.storage.files import refuse_existing
from avtcli.storage.metrics_log import MetricsLog
from avtcli.storage.run_folders import (
    create_run,
    default_folder,
    find_run,
    is_run,
    is_running,
    lock_run,
    newest_run,
    run_to_resume,
)


def test_a_new_run_folder_has_settings_environment_and_checkpoints(tmp_path: Path) -> None:
    create_run(tmp_path / "a" / "b", "seed = 0\n", {"pid": 1})

    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["checkpoints", "config.toml", "env.json"]
    assert is_run(tmp_path / "a" / "b")


@pytest.mark.parametrize("what", ["folder", "file", "dangling link"])
def test_nothing_is_overwritten(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run"
    {"folder": path.mkdir, "file": path.touch, "dangling link": lambda: path.symlink_to("nowhere")}[what]()

    with pytest.raises(AvtError, match=r"run exists already and is not overwritten\. Choose another --out"):
        create_run(path, "", {})


@pytest.mark.parametrize("place", ["file/out", "file/a/out", "/proc/nowhere/out"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AvtError, match=rf"{place} cannot be written: .*\. Choose another --out, or see to its folder"):
        refuse_existing(tmp_path / place)
    refuse_existing(tmp_path / "new" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_parent_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFailedError, match=r"could not be written: (Not a directory|File exists)"):
        create_run(tmp_path / "file" / "run", "", {})


def test_a_run_folder_appears_complete_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", fail)
        with pytest.raises(RunFailedError, match="run could not be written: No space left on device"):
            create_run(tmp_path / "run", "seed = 0\n", {})

    assert list(tmp_path.iterdir()) == []


def test_of_two_that_create_one_folder_at_once_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def late(written: Path, path: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        create_run(path, "seed = 1\n", {})  # the other one, between the check and the rename
        rename(written, path)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(AvtError, match="run exists already and is not overwritten"):
        create_run(tmp_path / "run", "seed = 0\n", {})

    assert (tmp_path / "run" / "config.toml").read_text() == "seed = 1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_lock_names_its_holder_and_is_released_when_that_dies(tmp_path: Path) -> None:
    create_run(tmp_path / "run", "", {"pid": 4711, "host": "elsewhere"})
    code = (
        "import sys; from pathlib import Path; from avtcli.storage.run_folders import lock_run; "
        "lock = lock_run(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdin=-1, stdout=-1, text=True)
    assert holder.stdin
    assert holder.stdout
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AvtError, match=rf"run is in use by process {holder.pid} on {socket.gethostname()}\. Wait for it"):
            lock_run(tmp_path / "run")
        holder.kill()
        holder.wait()
        lock_run(tmp_path / "run").release()


def test_who_looks_at_a_run_neither_stops_a_resumption_nor_writes_nor_seems_to_train(tmp_path: Path) -> None:
    create_run(tmp_path / "run", "", {})
    assert not is_running(tmp_path / "run", {})
    assert not (tmp_path / "run" / "lock").exists()
    with open(tmp_path / "run" / "lock", "ab") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        assert not is_running(tmp_path / "run", {})
        threading.Timer(0.2, fcntl.flock, (look.fileno(), fcntl.LOCK_UN)).start()
        lock = lock_run(tmp_path / "run")
    assert is_running(tmp_path / "run", {})
    lock.release()


def test_the_newest_run_is_the_one_started_last(tmp_path: Path) -> None:
    for i, name in enumerate(("z", "a", "m")):
        create_run(tmp_path / name, "", {})
        os.utime(tmp_path / name / "config.toml", ns=(i, i))
        (tmp_path / name / "checkpoints" / "step-0").mkdir()
        (tmp_path / name / "checkpoints" / "step-0" / "manifest.json").touch()
    create_run(tmp_path / "failed", "", {})  # later, and without a checkpoint
    (tmp_path / "no-run").mkdir()

    assert newest_run(tmp_path).name == "m"
    with pytest.raises(AvtError, match=r"There is no run under .*make one with `avt pretrain`"):
        newest_run(tmp_path / "runs")


def test_a_bare_name_is_the_run_under_runs_unless_it_is_a_run_or_file_here() -> None:
    for name in ("runs/stop", "runs/photos", "runs/both", "both", "runs/file"):
        create_run(Path(name), "", {})
    Path("photos").mkdir()
    Path("file").touch()

    for name in ("stop", "photos"):
        assert find_run(name) == find_run(Path(name)) == run_to_resume(name, {}) == Path("runs", name)
        assert find_run(f"./{name}/x") == Path(name, "x")
    for name in ("both", "file", "nothing", "runs/stop"):
        assert find_run(name) == Path(name)


def test_the_default_folder_names_its_subject_and_is_free() -> None:
    first = default_folder("fashion-mnist:/some/where", "timm:resnet18", "avt")
    first.mkdir(parents=True)

    assert first.name[16:] == "fashion-mnist-timm-resnet18-avt"
    assert not default_folder("fashion-mnist", "timm:resnet18", "avt").exists()


def test_metrics_are_cut_after_a_step_and_at_an_incomplete_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append([{"step": 1, "epoch": 0}, {"step": 2, "epoch": 0}])
    log.append([{"step": 3, "epoch": 0}])
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')

    assert [line["step"] for line in log.read()] == [1, 2, 3]
    log.cut_after(2)
    assert log.path.read_text() == '{"step": 1, "epoch": 0}\n{"step": 2, "epoch": 0}\n'


JUNK = (
    b'\0\0\0\0\n[1, 2]\n{"loss": 1}\n{"step": "2"}\n{"step": true}\n\xff\xfe\n{"step": 3}{"step": 4}\n' + b"[" * 10**5 + b"\n"
)


def test_damaged_lines_of_the_metrics_are_passed_over_with_one_notice(tmp_path: Path) -> None:
    log, events = MetricsLog(tmp_path / "metrics.jsonl"), list[Event]()
    good = b'{"step": 1, "epoch": 0}\n', b'{"step": 5, "epoch": 0, "loss": null}\n'
    log.path.write_bytes(good[0] + JUNK + good[1])
    log.cut_after(5, on_event=events.append)

    assert log.path.read_bytes() == b"".join(good)
    (notice,) = events
    assert isinstance(notice, Notice)
    assert notice.text.endswith("metrics.jsonl: 8 lines are damaged and left out, the first is line 2")


def test_a_log_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    log, events = MetricsLog(tmp_path / "metrics.jsonl"), list[Event]()
    os.mkfifo(log.path)
    log.cut_after(1, on_event=events.append)

    assert log.path.is_file()
    assert "a pipe or a device, expected a file" in str(events[0])


def test_metrics_are_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    """A limit of the file size makes the kernel take a part of what is written, as a disk does that fills up."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append([{"step": 1, "epoch": 0, "loss": 0.5}])
    before, soft = log.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, soft[1]))
        with pytest.raises(RunFailedError, match=r"metrics\.jsonl could not be written: File too large"):
            log.append([{"step": 2, "epoch": 0, "loss": 0.25}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
        signal.signal(signal.SIGXFSZ, ignored)

    assert log.path.read_bytes() == before
    log.append([{"step": 2, "epoch": 0, "loss": 0.25}])
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2]


def test_changes_of_the_environment_are_listed() -> None:
    versions = {"torch": "2", "avtcli": "1", "timm": "9"}
    now = {
        "device": "cpu",
        "processes": 1,
        "threads": 2,
        "cpu_capability": "AVX2",
        "versions": versions,
        "plugins": {"a": "b 1"},
    }
    before = {**now, "threads": 1, "versions": {"torch": "1", "avtcli": "1", "timm": "8"}}

    assert environment_changes(before, now) == ["threads was 1, is 2", "torch version was 1, is 2", "timm version was 8, is 9"]
    assert environment_changes(now, now) == []
