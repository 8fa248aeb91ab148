"""The bench of every test: one thread, a folder of its own, and `avt` in this process or another."""

import importlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# Before torch is imported: two threads on two busy cores spin, and a library that woke up with two keeps other bits.
os.environ |= {"OMP_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "200"}
os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
for name in ("AVT_DATA", "GITHUB_ACTIONS", "FORCE_COLOR", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)

import pytest
import torch
from typer.testing import CliRunner

from avtcli import registry
from avtcli.cli.app import app
from avtcli.exporting import export
from avtcli.models.encoder import Encoder
from avtcli.training import training_setup
from tests.support import Result, run_tiny


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def avt() -> Callable[..., Result]:
    """Run a command line in this process; a bug raises."""

    def run(line: str) -> Result:
        result = CliRunner().invoke(app, line.split())
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def avt_process() -> Callable[..., Result]:
    """Run a command line as a user does, in a process of its own."""

    def run(line: str, **variables: str) -> Result:
        ended = subprocess.run(
            [sys.executable, "-m", "avtcli", *line.split()],
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, **variables},
            check=False,
        )
        return Result(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run that tests read and do not change."""
    run = run_tiny(tmp_path_factory.mktemp("runs") / "tiny")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    yield run
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


@pytest.fixture
def few_held_out_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure runs on 60 images instead of 1000, which takes longer than to train them."""
    monkeypatch.setattr(training_setup, "HELD_OUT_COUNT", 60)


@pytest.fixture
def exports_load_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load exported files back in this process: that a fresh one loads each format is tested once."""

    def compare(encoder: Encoder, x: torch.Tensor, path: Path, lines: Sequence[str]) -> tuple[float, float]:
        names: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")  # torch 2.11, in its own code
            exec("\n".join(lines), names)
            expected = encoder(x).flatten()
            found = torch.as_tensor(names["encoder"](x)).flatten()
            return float((found - expected).abs().max()), float(expected.abs().max())

    monkeypatch.setattr(export, "compare_loaded", compare)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Leave a distribution where pip would: modules, and the entry points of a group."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(entries: dict[str, dict[str, str]], *, distribution: str = "stranger", **modules: str) -> None:
        for module, text in modules.items():
            (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{distribution}-3.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 3.1\n")
        groups = (f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in names.items()) for group, names in entries.items())
        (info / "entry_points.txt").write_text("\n".join(groups))
        importlib.invalidate_caches()
        registry.entries_on.cache_clear()

    yield make
    for module in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]
