"""`avt pretrain --dry-run`: its figures against those of real runs, and that it leaves nothing behind."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from avtcli.bench import dry_run as module
from avtcli.config import run_length
from avtcli.errors import RunFailedError
from avtcli.events import ignore
from avtcli.runtime.devices import memory_errors_explained
from avtcli.training import run_log
from avtcli.training.step import Trainer
from tests.support import run_tiny, tiny_config, write_cifar10

TINY = "-o backbone.width=0.05 --limit-train 40 --batch-size 16 --device cpu --eval-every 0"


@pytest.fixture(autouse=True)
def _measures_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_STEPS", 3)


def tried(**over: Any) -> module.DryRun:
    return module.dry_run(tiny_config(**over), run=None, resume=False, on_event=ignore)


def test_the_figures_are_those_of_the_run(avt) -> None:
    line = f"pretrain {TINY} -o backbone.width=0.25 --epochs 2"
    dry = avt(f"{line} --dry-run --json").json
    run = avt(f"{line} --out run --json").json

    assert (dry["steps"], dry["epochs"], dry["recipe"]) == (run["steps"], run["epochs"], run["recipe"]) == (6, 2.0, "default")
    files = Path("run/checkpoints/step-0000000006").glob("*.safetensors")
    assert dry["disk_bytes"] == pytest.approx(2 * sum(path.stat().st_size for path in files), rel=0.05)
    assert dry["seconds"] == pytest.approx(2 * 40 / dry["pairs_per_second"])
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    assert 0.5 * resident < dry["memory_bytes"] < 64e9
    again = avt("pretrain --resume run --epochs 3 --dry-run --json").json
    assert again["seconds"] == pytest.approx(40 / again["pairs_per_second"])  # of the epoch that is left


def test_slow_first_steps_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that training steps alone move."""
    seconds = [0.0]

    class Slow(Trainer):
        def step(self, step: int, batch: Any) -> Any:
            seconds.append(seconds[-1] + (100.0 if len(seconds) == 1 else 0.25))
            return super().step(step, batch)

    monkeypatch.setattr(module, "Trainer", Slow)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: seconds[-1]))

    assert tried(limit_train=48).pairs_per_second == pytest.approx(16 / 0.25)


def test_nothing_is_written_and_no_random_draw_changes(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    tried()

    assert list(tmp_path.iterdir()) == []
    assert torch.equal(torch.get_rng_state(), before)


def test_the_text_says_time_memory_and_disk_and_what_takes_an_hour(avt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_length, "HOUR", 1.0)
    write_cifar10(Path("data"), per_batch=4)
    result = avt("pretrain --dataset cifar10 -o backbone.width=0.05 --dry-run")

    assert result.stdout.startswith("Configuration OK: 4500 steps into runs/")
    for text in ("\ntime    ", " pairs/s\n", "hint    `--epochs ", "\nmemory  ", "\ndisk    "):
        assert text in result.stdout


def test_a_run_states_its_speed_once_and_what_takes_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_length, "HOUR", 0.001)
    monkeypatch.setattr(run_log, "MEASURED_SECONDS", 0.0)
    events: list[Any] = []
    began = time.monotonic()
    run = run_tiny(Path("run"), on_event=events.append)
    seconds = time.monotonic() - began
    stated = [event.text for event in events if "pairs/s: " in getattr(event, "text", "")]

    assert len(stated) == 1
    assert float(stated[0].split()[0]) > 3 * 40 / seconds  # faster than with start and end
    assert "\n`--epochs 1 --limit-train " in stated[0]
    assert len([line for line in run.joinpath("metrics.jsonl").read_text().splitlines() if "loss" in json.loads(line)]) == 9
    events.clear()
    run_tiny(Path("run"), resume=True, on_event=events.append, epochs=9)
    stated = [event.text for event in events if "pairs/s: " in getattr(event, "text", "")]
    assert len(stated) == 1
    assert "--epochs" not in stated[0]  # a run that goes on gets no shorter


def test_steps_that_are_not_finite_end_the_dry_run(avt) -> None:
    result = avt(f"pretrain {TINY} --lr 1e30 --dry-run")

    assert (result.code, result.stdout) == (1, "")
    assert "not finite" in result.stderr


def test_a_full_disk_and_a_folder_that_exists_are_found(avt, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("taken").mkdir()
    assert "taken exists already" in avt(f"pretrain {TINY} --out taken --dry-run").stderr
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    result = avt(f"pretrain {TINY} --out far/away/run --dry-run")

    assert result.code == 2
    assert f"in {Path.cwd()}, 0 MB are free: give another --out" in result.stderr


def test_too_little_memory_is_a_message() -> None:
    with (
        pytest.raises(RunFailedError, match=r"does not fit in memory .* Give a smaller --batch-size"),
        memory_errors_explained(),
    ):
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), memory_errors_explained():
        torch.ones(2) @ torch.ones(3)
