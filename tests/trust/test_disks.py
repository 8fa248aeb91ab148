"""Disks that are full, read-only, or limited: one message, nothing torn, and the run goes on once there is room."""

import contextlib
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trust.conftest import Reference
from tests.trust.harness import (
    SETTINGS,
    STEPS,
    Ended,
    Zygote,
    args_to_go_on,
    contents,
    finished,
    forms,
    newest_step,
    resumed,
    small_disk,
    standing,
    steps_of,
    tally,
    weights_of,
)
from tests.trust.test_system_calls import traced

CHECKPOINT = 110_000
"""Bytes of one checkpoint, about."""


@contextlib.contextmanager
def filled(disk: Path, *, but: int = 0) -> Iterator[None]:
    """Fill a disk but for some bytes, and free them at the end."""
    filler = disk / "filler"
    left = shutil.disk_usage(disk).free - but
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while left > 0:
            left -= file.write(b"\0" * min(left, 1 << 16))
    try:
        yield
    finally:
        filler.unlink()


def failed(ended: Ended, run: Path, *codes: int) -> list[str]:
    """What is wrong with an end for want of a disk: one message that names a path of the run, no traceback, nothing torn."""
    return [*ended.problems(*(codes or (1,))), *standing(run, ended.stderr), *ended.message_problems(run)]


@pytest.mark.parametrize(("part", "parts", "trials"), forms("full disks"))
def test_a_disk_too_small_for_the_run(
    zygote: Zygote, reference: Reference, tmp_path: Path, part: int, parts: int, trials: int
) -> None:
    """Room for anything between nothing and three checkpoints, which is less than saving takes."""
    every = max(1, parts) * trials
    rooms = [int((n + 0.5) / every * 2.9 * CHECKPOINT) for n in range(every)]
    with small_disk(tmp_path / "disk", size="4m") as disk, tally("a disk that fills up at some byte") as counted:
        for room in rooms[part - 1 :: parts] if parts else rooms:
            run = disk / "run"
            with filled(disk, but=room):
                wrong = failed(zygote.run("pretrain", *SETTINGS, "--out", str(run)), run)
                saved = {path: contents(path) for path in steps_of(run).values()}
                if (run / "config.toml").exists():  # again, still without room: what is there stays as it is
                    wrong += failed(zygote.run(*args_to_go_on(run, SETTINGS)), run)
                    wrong += [f"{path.name} changed" for path, before in saved.items() if contents(path) != before]
            if run.exists() and not (run / "config.toml").exists():
                wrong.append("a folder without settings is left, which neither resumes nor starts again")
            counted.add(f"room for {room} bytes", wrong + resumed(zygote, run, reference.weights))
            shutil.rmtree(run, ignore_errors=True)


def test_a_disk_that_is_full_for_a_moment_while_the_log_is_written(zygote: Zygote, tmp_path: Path) -> None:
    """The log fills its last page of the disk: what the kernel takes of the next lines is taken back."""
    settings = [*SETTINGS, "--limit-train", "16", "--batch-size", "8", "--epochs", "40", "--save-every", "10"]
    with small_disk(tmp_path / "disk", size="4m") as disk:
        run, undisturbed = disk / "run", tmp_path / "undisturbed"
        assert zygote.run("pretrain", *settings, "--out", str(undisturbed)).problems(0) == []
        log = run / "metrics.jsonl"
        with zygote.start("pretrain", *settings, "--out", str(run)) as trial:
            assert trial.wait_for(lambda: log.exists() and log.stat().st_size > 0)
            trial.send(signal.SIGSTOP)
            with filled(disk):
                trial.send(signal.SIGCONT)
                ended = trial.wait()
        wrong = ended.problems(1) + ended.message_problems(run)
        assert log.read_bytes().endswith(b"}\n"), "a line was torn"
        ended = zygote.run("pretrain", "--resume", str(run))
        wrong += ended.problems(0) or finished(run, weights_of(undisturbed, 80), steps=80)

        assert wrong == []


@pytest.mark.parametrize("limit", [1_000, 20_000, pytest.param(50_000, marks=pytest.mark.long)])
def test_a_limit_on_the_size_of_files(zygote: Zygote, reference: Reference, tmp_path: Path, limit: int) -> None:
    """`ulimit -f`: the settings, the weights or the optimiser state do not fit; a kernel's signal must not end it."""
    run = tmp_path / "run"

    assert failed(zygote.run("pretrain", *SETTINGS, "--out", str(run), file_size=limit), run) == []
    assert resumed(zygote, run, reference.weights) == []


def test_a_limit_on_the_size_of_files_that_comes_later(zygote: Zygote, reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with zygote.start("pretrain", *SETTINGS, "--out", str(run)) as trial:
        assert trial.wait_for(lambda: newest_step(run) >= 2)
        resource.prlimit(trial.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
        ended = trial.wait()

    assert failed(ended, run) == []
    assert newest_step(run) >= 2
    assert resumed(zygote, run, reference.weights) == []


def test_a_read_only_disk(zygote: Zygote, reference: Reference, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size="4m") as disk:
        run = disk / "run"
        with zygote.start("pretrain", *SETTINGS, "--out", str(run)) as trial:
            assert trial.wait_for(lambda: newest_step(run) >= 2)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        wrong = failed(zygote.run("pretrain", "--resume", str(run)), run, 1, 2)
        wrong += failed(zygote.run("pretrain", *SETTINGS, "--out", str(disk / "new")), disk / "new", 1, 2)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)

        assert wrong == []
        assert resumed(zygote, run, reference.weights) == []


@pytest.mark.parametrize("error", ["EACCES", pytest.param("EIO", marks=pytest.mark.long)])
def test_old_checkpoints_that_cannot_be_deleted_stop_nothing(
    zygote: Zygote, reference: Reference, tmp_path: Path, error: str
) -> None:
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    run = tmp_path / "run"
    with (
        zygote.start("pretrain", *SETTINGS, "--out", str(run), traced=True) as trial,
        traced(trial, "-e", f"inject=unlinkat,rmdir:error={error}:when=5+"),
    ):
        ended = trial.wait()

    assert ended.problems(0) == []
    assert standing(run, ended.stderr) == []
    assert weights_of(run) == reference.weights
    assert resumed(zygote, run, reference.weights) == []
    assert newest_step(run) == STEPS


@pytest.mark.parametrize("options", [[], pytest.param(["--json"], marks=pytest.mark.long)])
def test_results_that_nobody_can_read_lose_no_run(
    zygote: Zygote, reference: Reference, tmp_path: Path, options: list[str]
) -> None:
    """Standard output is a full disk."""
    run = tmp_path / "run"
    ended = zygote.run("pretrain", *SETTINGS, *options, "--out", str(run), stdout="/dev/full")

    assert ended.code != 0, "nothing was reported"
    assert "Traceback" not in ended.stderr
    assert finished(run, reference.weights) == []


def test_a_share_of_the_disk_is_free_again_after_a_failure(zygote: Zygote, tmp_path: Path) -> None:
    """A failed save takes its temporary files away itself."""
    draw = random.Random(0)
    with small_disk(tmp_path / "disk", size="4m") as disk:
        run = disk / "run"
        with filled(disk, but=int(draw.uniform(2.2, 2.8) * CHECKPOINT)):
            zygote.run("pretrain", *SETTINGS, "--out", str(run))

        assert not [path for path in run.rglob("*") if "tmp" in path.name]
