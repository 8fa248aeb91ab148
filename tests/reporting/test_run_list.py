"""The list of runs: states, figures and damages, without weights or whole logs being read."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from avtcli.errors import AvtError, InterruptedRunError, RunFailedError
from avtcli.reporting.run_list import ListedRun, describe_runs
from avtcli.storage.metrics_log import BLOCK_BYTES, MetricsLog
from avtcli.storage.run_folders import create_run, locked, outcome_recorded
from tests.reporting.test_comparison import made, probed, write

CONFIG = """seed = 7
eval_every = 10
[dataset]
name = "cifar10"
[backbone]
name = "nin"
[objective]
name = "avt"
[transform]
name = "affine"
"""


def with_files(run: Path, step: int = 4) -> Path:
    """Give a checkpoint its manifest, and a file of the size that it states."""
    folder = run / "checkpoints" / f"step-{step:010d}"
    (folder / "state.json").write_text("{}")
    write(folder / "manifest.json", {"state.json": {"size": 2, "sha256": ""}})
    return run


def listed(name: str) -> ListedRun:
    (found,) = (run for run in describe_runs(Path("runs")) if run.name == name)
    return found


@contextmanager
def a_process_that_holds(run: Path) -> Iterator[None]:
    code = "import sys; from pathlib import Path; from avtcli.storage.run_folders import lock_run\n"
    code += "lock = lock_run(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(run)], text=True, **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == "held\n"
        yield
        holder.kill()


def test_a_row_has_settings_steps_and_figures() -> None:
    run = with_files(made(Path("runs/a"), config=CONFIG))
    probed(run, "1", 70)
    probed(run, "2", 81, layer="conv3")
    write(run / "env.json", {"steps": 9})
    found = listed("a")

    assert (found.data, found.backbone, found.objective, found.transform, found.seed) == ("cifar10", "nin", "avt", "affine", 7)
    assert (found.step, found.steps, found.state, found.problem) == (4, 9, "complete", None)
    assert (found.mace_px, found.knn_top1, found.last) == (12.0, 80.0, True)
    assert found.probe is not None
    assert (found.probe.name, found.probe.top1) == ("conv3 knn", 81)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "stopped"),  # as after a kill: nothing was written
        (InterruptedRunError("Stopped by SIGINT", 2, Path("runs/a")), "stopped"),
        (RunFailedError("the disk is full"), "failed"),
        (ZeroDivisionError("a bug"), "failed"),
    ],
)
def test_the_state_of_a_run_that_is_not_complete(error: Exception | None, state: str) -> None:
    run = Path("runs/a")
    create_run(run, CONFIG, {})
    try:
        with locked(run), outcome_recorded(run, steps=9):
            assert listed("a").state == "running"
            if error is not None:
                raise error
    except type(error or Exception()) as caught:
        assert caught is error  # noqa: PT017
    found = listed("a")

    assert (found.state, found.step, found.steps) == (state, 0, 9)
    assert found.problem == (None if state == "stopped" else f"{type(error).__name__}: {error}")

    with outcome_recorded(run, steps=12):  # it goes on
        pass
    assert (listed("a").state, listed("a").steps) == ("stopped", 12)


def test_a_run_that_another_process_trains_is_running_until_it_is_killed() -> None:
    with_files(made(Path("runs/a"), config=CONFIG))
    with a_process_that_holds(Path("runs/a")):
        assert listed("a").state == "running"
    assert listed("a").state == "complete"


DAMAGES: dict[str, tuple[str, Any]] = {
    "config.toml": ("config.toml", "seed = "),
    "no config.toml": ("config.toml", None),
    "a manifest": ("checkpoints/step-0000000004/manifest.json", "[]"),
    "a file cut short": ("checkpoints/step-0000000004/state.json", "{"),
    "an evaluation": ("metrics.jsonl", '{"step": 4, "epoch": 2, "eval": [1]}\n'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_a_row(damage: str) -> None:
    with_files(made(Path("runs/good"), config=CONFIG))
    run, (name, text) = with_files(made(Path("runs/bad"), config=CONFIG)), DAMAGES[damage]
    (run / name).unlink() if text is None else (run / name).write_text(text)

    assert (listed("bad").state, listed("good").state) == ("damaged", "complete")
    assert listed("bad").problem


@pytest.mark.parametrize("name", ["env.json", "result.json", "evaluate.json", "probes/1.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [b"", b"\xff\x00", b'{"step": {}, "steps": [], "eval": 3}', b"[1]"])
def test_other_damaged_files_are_left_out(name: str, content: bytes) -> None:
    run = with_files(made(Path("runs/a"), config=CONFIG))
    (run / "probes").mkdir()
    (run / name).write_bytes(content)

    assert listed("a").data == "cifar10"


def test_runs_come_in_the_order_of_their_start_and_other_folders_are_passed_over() -> None:
    for name, since in (("b", 100), ("a", 300), ("c", 200)):
        run = with_files(made(Path("runs", name), config=CONFIG))
        os.utime(run / "config.toml", (since, since))
    Path("runs/photos").mkdir()
    Path("runs/note.txt").write_text("")

    assert [(run.name, run.last, run.started[:19]) for run in describe_runs(Path("runs"))] == [
        ("b", False, "1970-01-01T00:01:40"),
        ("c", False, "1970-01-01T00:03:20"),
        ("a", True, "1970-01-01T00:05:00"),
    ]
    with pytest.raises(AvtError, match="nowhere is no folder"):
        describe_runs(Path("nowhere"))


def test_the_newest_line_is_found_without_reading_what_is_before(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"step": i + 1, "epoch": 0, "loss": 1.0, "pad": "x" * (i % 97)} for i in range(5000)]
    lines[4990] = {"step": 4991, "epoch": 0, "eval": {"mace_px": 1.0}}
    lines[10] = {"step": 11, "epoch": 0, "eval": {"mace_px": 2.0}}
    path = Path("metrics.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert path.stat().st_size > 3 * BLOCK_BYTES

    assert [line["step"] for line in MetricsLog(path).newest("eval")] == [4991, 11]
    assert [line["step"] for line in MetricsLog(path).newest("loss")] == [i for i in range(5000, 0, -1) if i not in (4991, 11)]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5)  # a torn line
    path.write_bytes(b"\xff" * BLOCK_BYTES + path.read_bytes())
    assert next(MetricsLog(path).newest("eval"))["step"] == 4991
