"""Signals that ask a run to stop: the step ends, the state is saved, and the printed command goes on to the same bits."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trust.conftest import Reference
from tests.trust.harness import (
    ENVIRONMENT,
    SETTINGS,
    STEPS,
    Ended,
    Trial,
    Zygote,
    args_to_go_on,
    finished,
    forms,
    newest_step,
    picture_settings,
    standing,
    tally,
    weights_of,
)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
PHASES = ("start-up", "first steps", "saving", "evaluation", "last step")
WORDS = "stopping after this step; again to leave at once"


def reach(trial: Trial, run: Path, phase: str, draw: random.Random) -> None:
    """Wait until a run is in a phase, and a random moment longer."""
    if phase == "start-up":
        time.sleep(draw.uniform(0, 0.3))
    elif phase == "saving":
        trial.wait_for(lambda: newest_step(run) >= 1 and any((run / "checkpoints").glob(".tmp-*")))
    else:
        step = {"first steps": 1, "evaluation": 0, "last step": STEPS - 1}[phase]
        trial.wait_for(lambda: newest_step(run) >= step)
        time.sleep(draw.uniform(0, 0.5 if phase == "evaluation" else 0.03))


def printed_command(ended: Ended) -> list[str]:
    """Read the arguments of the printed command that resumes; none if there is no such command."""
    found = re.findall(r"avt (pretrain .*--resume .*)", ended.stderr)
    return shlex.split(found[-1]) if found else []


def stopped(ended: Ended, run: Path, number: int, *, early: bool = False) -> list[str]:
    """What is wrong with the end of a run that a signal stopped, perhaps early, before the first step."""
    if not run.exists():  # nothing was made; the system's default of the signal is as good
        return ended.problems(128 + number, -number)
    if early and newest_step(run) < 1:
        return ended.problems(128 + number) + standing(run, ended.stderr) + ([] if ended.stderr else ["not a word"])
    wrong = ended.problems(128 + number) + standing(run, ended.stderr)
    wrong += [] if WORDS in ended.stderr else [f"not said: {WORDS}"]
    command = printed_command(ended)
    where = command[command.index("--resume") + 1] if "--resume" in command else None
    return wrong + ([] if where == str(run) else [f"resumes {where}, not the absolute path: {ended.stderr[-300:]}"])


def go_on(zygote: Zygote, run: Path, weights: tuple[str, str], command: list[str], settings: list[str]) -> list[str]:
    """Run the printed command from another folder, or without one what a user would type."""
    ended = zygote.run(*(command or args_to_go_on(run, settings)))
    return ended.problems(0) or finished(run, weights)


@pytest.fixture(scope="session")
def read_from_files(zygote: Zygote, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Settings with two readers, and an undisturbed run of them."""
    settings, run = [*SETTINGS, *picture_settings(pictures), "--workers", "2"], tmp_path_factory.mktemp("files") / "run"
    assert zygote.run("pretrain", *settings, "--out", str(run)).problems(0) == []
    return settings, run


@pytest.mark.parametrize(("part", "parts", "trials"), forms("signals"))
def test_a_signal_stops_a_run_with_nothing_lost(
    zygote: Zygote,
    reference: Reference,
    read_from_files: tuple[list[str], Path],
    tmp_path: Path,
    part: int,
    parts: int,
    trials: int,
) -> None:
    """Each signal, to the process or its group, in each phase, with readers and without."""
    every = [(s, phase, group, workers) for s in SIGNALS for phase in PHASES for group in (False, True) for workers in (0, 2)]
    drawn = [(SIGNALS[n % 5], PHASES[(n + n // 5) % 5], n % 2 == 1, n // 2 % 2 * 2) for n in range(trials)]
    cases = [every[(part * trials + n) % len(every)] for n in range(trials)] if parts else drawn
    with tally("one of five signals, to the process or its group, in five phases, with readers and without") as counted:
        for seed, (number, phase, group, workers) in enumerate(cases, 1000 * part):
            settings = read_from_files[0] if workers else SETTINGS
            weights = weights_of(read_from_files[1]) if workers else reference.weights
            evaluated = ["--eval-every", "1"] if phase == "evaluation" else []
            for attempt in range(3):  # a signal that came after the last step stopped nothing: once more
                run, draw = tmp_path / f"{seed}-{attempt} 'it'", random.Random(seed + attempt / 4)
                with zygote.start("pretrain", *settings, *evaluated, "--out", str(run)) as trial:
                    reach(trial, run, phase, draw)
                    trial.send(number, group=group)
                    ended = trial.wait()
                complete = not ended.problems(0) and newest_step(run) == STEPS
                if not complete or phase == "last step" or WORDS in ended.stderr:
                    break
            wrong = [] if complete and phase == "last step" else stopped(ended, run, number, early=phase == "start-up")
            wrong += go_on(zygote, run, weights, printed_command(ended), settings)
            counted.add(f"{number!r} to the {'group' if group else 'process'}, {phase}, {workers} readers, seed {seed}", wrong)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_second_signal_leaves_at_once_and_loses_nothing(
    zygote: Zygote, reference: Reference, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    with zygote.start("pretrain", *SETTINGS, "--eval-every", "1", "--out", str(run)) as trial:
        assert trial.wait_for(lambda: newest_step(run) >= 0), trial.written()
        time.sleep(0.1)
        trial.send(number)  # in the evaluation after the first step, which takes long
        told = trial.wait_for(lambda: WORDS in trial.written(), timeout=20)
        trial.send(number)
        ended = trial.wait()

    assert told, ended.stderr
    assert ended.problems(128 + number) == []
    assert newest_step(run) <= 1
    assert go_on(zygote, run, reference.weights, [], SETTINGS) == []


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(zygote: Zygote, reference: Reference, tmp_path: Path) -> None:
    """As under nohup, and as of a job in a shell's background."""
    run, ignored = tmp_path / "run", [signal.SIGHUP, signal.SIGINT]
    with zygote.start("pretrain", *SETTINGS, "--out", str(run), ignored=ignored) as trial:
        assert trial.wait_for(lambda: newest_step(run) >= 1)
        for number in ignored:
            trial.send(number, group=True)
        ended = trial.wait()

    assert ended.problems(0) == []
    assert finished(run, reference.weights) == []


def test_a_closed_terminal_stops_a_run_with_nothing_lost(zygote: Zygote, reference: Reference, tmp_path: Path) -> None:
    """The kernel sends SIGHUP, and writing to the terminal fails from then on."""
    run, (outer, inner) = tmp_path / "run", os.openpty()
    try:
        with zygote.start("pretrain", *SETTINGS, "--out", str(run), terminal=os.ttyname(inner)) as trial:
            os.set_blocking(outer, False)
            assert trial.wait_for(lambda: drain(outer) and newest_step(run) >= 2)
            os.close(inner)
            os.close(outer)
            outer = inner = -1
            ended = trial.wait()
    finally:
        for descriptor in {outer, inner} - {-1}:
            os.close(descriptor)

    assert ended.code == 128 + signal.SIGHUP
    assert standing(run) == []
    assert 2 <= newest_step(run) < STEPS
    assert go_on(zygote, run, reference.weights, [], SETTINGS) == []


def drain(descriptor: int) -> bool:
    """Read what a terminal shows, so that its writer does not wait."""
    try:
        os.read(descriptor, 65536)
    except OSError:
        pass
    return True


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 20))])
def test_a_signal_while_the_interpreter_starts_is_no_traceback(
    zygote: Zygote, reference: Reference, tmp_path: Path, seed: int
) -> None:
    """A process of its own, which spends seconds on its imports."""
    draw, run = random.Random(seed), tmp_path / "run"
    number = draw.choice(SIGNALS)
    command = [sys.executable, "-m", "avtcli", "pretrain", *SETTINGS, "--out", str(run)]
    with tally("a signal while the interpreter starts") as counted:
        process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            time.sleep(draw.uniform(0.3, 2.5))
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=120)
        finally:
            process.kill()
            process.communicate()
        ended = Ended(process.returncode, stdout, stderr)
        wrong = stopped(ended, run, number, early=True) + go_on(
            zygote, run, reference.weights, printed_command(ended), SETTINGS
        )
        counted.add(f"{number!r}, seed {seed}", wrong)
