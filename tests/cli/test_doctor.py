"""`avt doctor`."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from avtcli.inspection import installation, machine
from avtcli.inspection.finding import Finding
from tests.support import Result, write_cifar10

Doctor = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def doctor(avt: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """The findings by subject, without the import of every plugin."""

    def run(line: str = "", *, plugins: bool = False) -> dict[str, dict[str, Any]]:
        if not plugins:
            monkeypatch.setattr(machine.registry, "KINDS", {})
        result = avt(f"doctor --json {line}")
        findings = {finding["subject"]: finding for finding in result.json["findings"]}
        problems = [finding for finding in findings.values() if finding["status"] == "problem"]
        assert (result.code, result.json["ok"]) == ((1, False) if problems else (0, True))
        assert all(finding["way_out"] for finding in findings.values() if finding["status"] == "note")
        return findings

    return run


def test_a_machine_in_order_ends_with_0_and_a_line_for_each_subject(avt: Callable[..., Result]) -> None:
    result = avt("doctor")

    assert result.code == 0, result.stdout + result.stderr
    assert {line.split()[0] for line in result.stdout.splitlines()} <= {"ok", "note"}
    for text in (platform.python_version(), version("torch"), f"{Path.cwd()}/runs", f"{Path.cwd()}/data", "can be imported"):
        assert text in result.stdout
    assert list(Path().iterdir()) == []


def test_versions_outside_of_the_tested_range_are_reported(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.3.1+cpu", "timm": "9.0.0"}
    monkeypatch.setattr(installation.importlib.metadata, "version", lambda name: versions.get(name) or version(name))
    found = doctor()

    assert (found["torch"]["status"], found["torch"]["way_out"]) == ("problem", "`pip install -U 'torch>=2.11'`")
    assert "2.3.1+cpu is too old, tested with 2.11 to" in found["torch"]["found"]
    assert (found["timm"]["status"], found["torchvision"]["status"]) == ("note", "ok")


def test_an_extra_that_is_missing_is_a_note_with_what_it_gives(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_pyarrow(name: str) -> str:
        if name == "pyarrow":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(installation.importlib.metadata, "version", without_pyarrow)
    found = doctor()["extra parquet"]

    assert (found["status"], found["way_out"]) == ("note", "`pip install 'avtcli[parquet]'`")
    assert found["found"] == "pyarrow missing, for `avt embed --out FILE.parquet`"


def test_data_sets_in_the_folder_are_found_without_a_download(doctor: Doctor) -> None:
    write_cifar10(Path("mine"))
    for part in ("train", "val"):
        Path("mine/imagenet", part).mkdir(parents=True)
    found = doctor("--data-dir mine")["data sets"]

    assert found["status"] == "ok"
    assert f"cifar10 in {Path.cwd()}/mine/cifar-10-batches-py" in found["found"]
    assert f"imagenet in {Path.cwd()}/mine/imagenet" in found["found"]
    assert "places205" not in found["found"]


def test_a_plugin_that_fails_is_a_problem_with_its_reason(doctor: Doctor, install) -> None:
    install({"avtcli.objectives": {"odd": "absent_module:odd"}})
    found = doctor(plugins=True)

    assert "of stranger 3.1 cannot be imported from absent_module:odd: ModuleNotFoundError" in found["objective odd"]["found"]


def test_variables_that_are_left_over_are_notes(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not {name for name in doctor() if name.startswith("variables")}
    for name, value in {"ACCELERATE_USE_FSDP": "1", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    found = doctor()

    assert found["variables of accelerate"]["way_out"] == "`unset ACCELERATE_USE_FSDP`"
    assert found["variables of a launcher"]["way_out"] == "if none runs, `unset RANK WORLD_SIZE`"


def test_threads_beyond_the_quota_and_little_room_are_notes(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=10**8)
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(machine, "_cpu_quota", lambda: 1.5)
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 10**9)
    found = doctor()

    assert {name for name in ("CPU", "memory", "runs", "data", "shared memory") if found[name]["status"] == "note"} == {
        *("CPU", "memory", "runs", "data"),
        *(["shared memory"] if os.path.isdir("/dev/shm") else []),
    }
    assert "export OMP_NUM_THREADS=" in found["CPU"]["way_out"]


def test_a_folder_that_cannot_be_written_is_a_problem(doctor: Doctor) -> None:
    Path("file").touch()
    found = doctor("--data-dir file/data")["data"]

    assert found["status"] == "problem"
    assert f"{Path.cwd()}/file cannot be written" in found["found"]
    assert "--data-dir DIR" in found["way_out"]


def test_the_last_line_of_a_failed_check_names_the_first_problem(avt: Callable[..., Result], monkeypatch) -> None:
    problem = Finding("torch", "problem", "too old", "update it")
    monkeypatch.setattr(installation, "check_installation", lambda data_dir: [problem])
    result = avt("doctor")

    assert (result.code, result.stdout) == (1, "problem  torch  too old; update it\n")
    assert "1 problem, the first: torch." in result.stderr
    assert json.loads(avt("doctor --json").stdout)["ok"] is False


def _broken(folder: Path, package: str, statement: str) -> str:
    """Return the module path on which a package of this name stands first, and raises when it is imported."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(statement)
    return f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"


@pytest.mark.parametrize("error", ["ImportError('undefined symbol: x')", "OSError('libcudart.so.12: cannot open')"])
def test_a_torch_that_cannot_be_imported_is_the_problem_and_no_traceback(avt_process, tmp_path: Path, error: str) -> None:
    path, reason = _broken(tmp_path / "broken", "torch", f"raise {error}"), error.replace("('", ": ").removesuffix("')")
    doctor, embed = avt_process("doctor --json", PYTHONPATH=path), avt_process("embed", PYTHONPATH=path)
    problems = [finding for finding in doctor.json["findings"] if finding["status"] == "problem"]

    assert (doctor.code, [finding["subject"] for finding in problems]) == (1, ["import torch"])
    assert reason in problems[0]["found"]
    assert "install torch, see https://pytorch.org/get-started" in problems[0]["way_out"]
    assert {"python", "torch", "runs", "data"} <= {finding["subject"] for finding in doctor.json["findings"]}
    assert "1 problem, the first: import torch." in doctor.stderr
    assert (embed.code, embed.stderr.count("\n")) == (1, 1)
    assert embed.stderr.startswith(f"error: {reason}.")
    assert "`avt doctor`" in embed.stderr
    assert "Traceback" not in doctor.stderr + embed.stderr


def test_a_torchvision_of_another_torch_is_the_problem(avt_process, tmp_path: Path) -> None:
    error = "raise RuntimeError('operator torchvision::nms does not exist')"
    result = avt_process("doctor", PYTHONPATH=_broken(tmp_path / "broken", "torchvision", error))
    line = next(line for line in result.stdout.splitlines() if line.startswith("problem"))

    assert result.code == 1
    assert "import torchvision  cannot be imported (RuntimeError: operator torchvision::nms does not exist)" in line
    assert "install the release of torchvision that belongs to this torch" in line


def test_help_and_version_need_no_torch(avt_process, tmp_path: Path) -> None:
    path = _broken(tmp_path / "broken", "torch", "raise ImportError('undefined symbol: x')")
    results = [avt_process(line, PYTHONPATH=path) for line in ("--version", "--help", "pretrain --help")]

    assert [result.code for result in results] == [0, 0, 0]
    assert results[0].stdout == f"avt {version('avtcli')}\n"


def test_a_package_that_is_missing_is_a_problem(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    found = doctor()["import timm"]

    assert (found["status"], found["way_out"]) == ("problem", "install timm")
