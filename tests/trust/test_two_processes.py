"""A run of two processes: one killed, or all signalled, and resumed to the same bits."""

import contextlib
import os
import random
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trust.harness import (
    SETTINGS,
    STEPS,
    Trial,
    Zygote,
    damage_of,
    finished,
    forms,
    newest_step,
    standing,
    steps_of,
    tally,
    weights_of,
)
from tests.trust.test_signalled_runs import SIGNALS, WORDS, printed_command

TWO = [*SETTINGS, "--processes", "2"]
PATIENCE = 400.0
"""Seconds until a process must have noticed that the other is gone."""


def ranks_of(run: Path) -> list[int]:
    """Find the processes that share a run, by their rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = dict(item.split(b"=", 1) for item in (path / "environ").read_bytes().split(b"\0") if b"=" in item)
            if b"RANK" in variables and str(run).encode() in (path / "cmdline").read_bytes():
                found[int(variables[b"RANK"])] = int(path.name)
    return [found[rank] for rank in sorted(found)]


@contextlib.contextmanager
def started(zygote: Zygote, run: Path, *args: str) -> Iterator[Trial]:
    """Start a launcher, which starts two processes; nothing of them is left at the end."""
    try:
        with zygote.start(*args) as trial:
            yield trial
    finally:
        for pid in ranks_of(run):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def outlived(run: Path) -> list[str]:
    """What is wrong if a process outlives the launcher by ten seconds."""
    limit = time.monotonic() + 10
    while ranks_of(run) and time.monotonic() < limit:
        time.sleep(0.1)
    return [f"{len(ranks_of(run))} processes are left"] if ranks_of(run) else []


def disturb(trial: Trial, run: Path, how: str, draw: random.Random) -> list[str]:
    """Do harm to two running processes, wait for the end, and return what is wrong with it."""
    number, ranks = draw.choice(SIGNALS), ranks_of(run)
    how = "nothing" if how == "kill" and not ranks else how  # the processes ended before
    if how == "kill":
        os.kill(draw.choice(ranks), signal.SIGKILL)
    elif how == "kill launcher":
        trial.send(signal.SIGKILL)
    elif how == "signal":
        trial.send(number)
    elif how == "group":  # as the end of a job does: launcher and processes, all at once
        for pid in [trial.pid, *ranks]:
            os.kill(pid, number)
    ended = trial.wait(timeout=PATIENCE)
    wrong = outlived(run) + standing(run, ended.stderr)
    if how == "kill":
        wrong += [] if ended.code > 0 and "error" in ended.stderr else [f"exit {ended.code}: {ended.stderr[-300:]!r}"]
        wrong += ["a traceback"] if "Traceback" in ended.stderr else []
    elif how != "kill launcher" and newest_step(run) < STEPS:
        wrong += ended.problems(128 + number)
        wrong += [] if ended.stderr.count(WORDS) == 1 else [f"said {ended.stderr.count(WORDS)} times: {WORDS}"]
        command = printed_command(ended)
        complete = "--processes 2" in shlex.join(command) and str(run) in command
        wrong += [] if complete else [f"not the whole command: {ended.stderr[-300:]}"]
    return [f"{how} ({number!r}): {problem}" for problem in wrong]


@pytest.fixture(scope="session")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    run = tmp_path_factory.mktemp("two") / "run"
    with started(zygote, run, "pretrain", *TWO, "--out", str(run)) as trial:
        assert trial.wait().problems(0) == []
    assert set(steps_of(run)) == {STEPS - 1, STEPS}
    assert not any(damage_of(folder) for folder in steps_of(run).values())
    return weights_of(run)


@pytest.mark.slow
def test_a_run_goes_on_by_itself_where_one_of_two_processes_is_killed(
    zygote: Zygote, undisturbed: tuple[str, str], tmp_path: Path
) -> None:
    """First one, then after the restart the other one, which writes."""
    run = tmp_path / "run"
    with started(zygote, run, "pretrain", *TWO, "--max-restarts", "2", "--out", str(run)) as trial:
        for rank, step in ((1, 2), (0, 5)):
            assert trial.wait_for(lambda step=step: newest_step(run) >= step and len(ranks_of(run)) == 2), trial.written()
            os.kill(ranks_of(run)[rank], signal.SIGKILL)
        ended = trial.wait(timeout=PATIENCE)

    assert ended.problems(0) == []
    for number, rank in ((1, 1), (2, 0)):
        said = f"Process {rank} of 2 was ended by SIGKILL. Restart {number} of 2:\n  avt pretrain --resume {run} --processes 2 "
        assert ended.stderr.count(said) == 1
    assert finished(run, undisturbed) == []


@pytest.mark.parametrize(("part", "parts", "trials"), forms("resumptions of two processes"))
def test_two_processes_lose_nothing(
    zygote: Zygote, undisturbed: tuple[str, str], tmp_path: Path, part: int, parts: int, trials: int
) -> None:
    """One is killed, or all are signalled, or the launcher is: the run goes on to the bits of the undisturbed one."""
    with tally("one of two processes killed, or the launcher or all of them signalled, then resumed") as counted:
        for seed in range(1000 * part, 1000 * part + trials):
            draw, run, wrong = random.Random(seed), tmp_path / str(seed), list[str]()
            harm = ["kill", draw.choice(("signal", "group", "kill launcher"))] if parts else ["kill"]
            draw.shuffle(harm)
            args = ["pretrain", *TWO, "--out", str(run)]
            for how, step in zip(harm, (draw.randint(0, 3), draw.randint(4, 6)), strict=False):
                with started(zygote, run, *args) as trial:
                    assert trial.wait_for(lambda run=run, step=step: newest_step(run) >= step), trial.written()
                    wrong += disturb(trial, run, how, draw)
                args = ["pretrain", "--resume", str(run), "--processes", "2"]
            with started(zygote, run, *args) as trial:
                wrong += trial.wait().problems(0) or finished(run, undisturbed)
            counted.add(f"seed {seed}", wrong)
