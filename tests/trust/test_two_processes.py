"""A run of two processes: one killed, or all signalled, and resumed to the same bits."""

import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.trust.harness import (
    ENVIRONMENT,
    SETTINGS,
    STEPS,
    Ended,
    damage_of,
    finished,
    forms,
    newest_step,
    standing,
    steps_of,
    tally,
    weights_of,
)
from tests.trust.test_signals import SIGNALS, WORDS, printed_command

TWO = [*SETTINGS, "--processes", "2"]
PATIENCE = 400.0
"""Seconds until a process must have noticed that the other is gone."""


@dataclass
class Pair:
    """A launcher and its two processes, in a session of their own."""

    process: subprocess.Popen[str]
    run: Path

    def ranks(self) -> list[int]:
        """The processes below the launcher that run `avt`, by their rank."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = dict(item.split(b"=", 1) for item in (path / "environ").read_bytes().split(b"\0") if b"=" in item)
                if b"RANK" in variables and str(self.run).encode() in (path / "cmdline").read_bytes():
                    found[int(variables[b"RANK"])] = int(path.name)
        return [found[rank] for rank in sorted(found)]

    def wait_for_step(self, step: int) -> bool:
        limit = time.monotonic() + PATIENCE
        while newest_step(self.run) < step and self.process.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        return newest_step(self.run) >= step

    def wait(self) -> Ended:
        stdout, stderr = self.process.communicate(timeout=PATIENCE)
        return Ended(self.process.returncode, stdout, stderr)

    def left(self) -> list[str]:
        """What is wrong if a process outlives the launcher by ten seconds."""
        limit = time.monotonic() + 10
        while self.ranks() and time.monotonic() < limit:
            time.sleep(0.1)
        return [f"{len(self.ranks())} processes are left"] if self.ranks() else []


@contextlib.contextmanager
def started(run: Path, *args: str) -> Iterator[Pair]:
    """Start `avt ARGS` in a process of its own; nothing of it is left at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "avtcli", *args],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pair = Pair(process, run)
    try:
        yield pair
    finally:
        for pid in [*pair.ranks(), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def disturb(pair: Pair, how: str, draw: random.Random) -> list[str]:
    """Do harm to a running pair, wait for its end, and return what is wrong with it."""
    number = draw.choice(SIGNALS)
    ranks = pair.ranks()
    if how == "kill":
        os.kill(draw.choice(ranks), signal.SIGKILL)
    elif how == "kill launcher":
        pair.process.send_signal(signal.SIGKILL)
    elif how == "signal":
        pair.process.send_signal(number)
    else:  # as a terminal or a job's end does: launcher and processes, all at once
        for pid in [pair.process.pid, *ranks]:
            os.kill(pid, number)
    ended = pair.wait()
    wrong = [*standing(pair.run, ended.stderr), *pair.left()]
    if how == "kill":
        wrong += [] if ended.code > 0 and ended.stderr.strip() else [f"exit {ended.code}, and it said {ended.stderr[-300:]!r}"]
        wrong += ["a traceback"] if "Traceback" in ended.stderr else []
    elif how != "kill launcher" and newest_step(pair.run) < STEPS:
        wrong += ended.problems(128 + number)
        wrong += [] if ended.stderr.count(WORDS) == 1 else [f"said {ended.stderr.count(WORDS)} times: {WORDS}"]
        command = printed_command(ended)
        complete = command[-2:] == ["--processes", "2"] or "--processes 2" in shlex.join(command)
        wrong += [] if complete and str(pair.run) in command else [f"not the whole command: {ended.stderr[-300:]}"]
    return [f"{how} ({number!r}): {problem}" for problem in wrong]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    run = tmp_path_factory.mktemp("two") / "run"
    with started(run, "pretrain", *TWO, "--out", str(run)) as pair:
        assert pair.wait().problems(0) == []
    assert set(steps_of(run)) == {STEPS - 1, STEPS}
    assert not any(damage_of(folder) for folder in steps_of(run).values())
    return weights_of(run)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("part", "parts", "trials"), forms("resumptions of two processes"))
def test_two_processes_lose_nothing(undisturbed: tuple[str, str], tmp_path: Path, part: int, parts: int, trials: int) -> None:
    """One is killed, then all are signalled or the launcher is; the run goes on each time, to the bits of the undisturbed one."""
    with tally("one of two processes killed, and launcher or group signalled, then resumed") as counted:
        for seed in range(1000 * part, 1000 * part + trials):
            draw, run, wrong = random.Random(seed), tmp_path / str(seed), list[str]()
            args = ["pretrain", *TWO, "--out", str(run)]
            harm = ["kill", draw.choice(("signal", "group", "kill launcher"))] if parts else ["kill", "group"]
            for how, step in zip(harm, (draw.randint(0, 3), draw.randint(4, 6)), strict=True):
                with started(run, *args) as pair:
                    assert pair.wait_for_step(step), pair.wait().stderr
                    wrong += disturb(pair, how, draw)
                args = ["pretrain", "--resume", str(run), "--processes", "2"]
            with started(run, *args) as pair:
                wrong += pair.wait().problems(0) or finished(run, undisturbed)
            counted.add(f"seed {seed}", wrong)
