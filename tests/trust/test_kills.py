"""SIGKILL at any moment: nothing that was saved is lost, and the run goes on to the same bits."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.trust.conftest import Reference
from tests.trust.harness import (
    SETTINGS,
    STEPS,
    Zygote,
    args_to_go_on,
    damage_of,
    forms,
    newest_step,
    picture_settings,
    resumed,
    standing,
    steps_of,
    tally,
    weights_of,
)


def kill(zygote: Zygote, run: Path, draw: random.Random, seconds: float) -> str:
    """Start or resume a run, kill it while it starts or some moments after a step was saved, and return what it wrote."""
    with zygote.start(*args_to_go_on(run, SETTINGS)) as trial:
        if draw.random() < 0.3:
            time.sleep(draw.uniform(0, seconds))
        else:
            step = draw.randint(newest_step(run) + 1, STEPS)
            trial.wait_for(lambda: newest_step(run) >= step)
            time.sleep(draw.uniform(0, 0.06))
        trial.send(signal.SIGKILL)
        return trial.wait().stderr


@pytest.mark.parametrize(("part", "parts", "trials"), forms("kills"))
def test_a_run_killed_at_any_moments_loses_nothing(
    zygote: Zygote, reference: Reference, tmp_path: Path, part: int, parts: int, trials: int
) -> None:
    with tally("SIGKILL at random moments, one to three times a run") as counted:
        for seed in range(1000 * part, 1000 * part + trials):
            draw, run, wrong = random.Random(seed), tmp_path / str(seed), list[str]()
            for _ in range(draw.randint(1, 3)):
                before = newest_step(run)
                if before < STEPS:
                    wrong += standing(run, kill(zygote, run, draw, reference.seconds))
                wrong += [f"went back from step {before} to {newest_step(run)}"] if newest_step(run) < before else []
            counted.add(f"seed {seed}", wrong or resumed(zygote, run, reference.weights))
            shutil.rmtree(run, ignore_errors=True)


def test_the_harness_sees_a_naive_writer_lose(zygote: Zygote, tmp_path: Path) -> None:
    """A control: files written over the last ones are lost within a few kills."""
    draw, lost = random.Random(0), 0
    for trial in range(12):
        run = tmp_path / str(trial)
        with zygote.start(control=str(run)) as writer:
            assert writer.wait_for(lambda run=run: any(not damage_of(folder) for folder in steps_of(run).values()))
            time.sleep(draw.uniform(0, 0.1))
            writer.send(signal.SIGKILL)
        lost += any(damage_of(folder) for folder in steps_of(run).values())

    assert lost >= 1


@pytest.mark.parametrize(("part", "parts", "trials"), forms("kills of readers"))
def test_a_run_killed_with_readers_resumes_at_once(
    zygote: Zygote, pictures: Path, tmp_path: Path, part: int, parts: int, trials: int
) -> None:
    """Reader processes outlive their parent for a moment: they must not hold the run."""
    settings = [*SETTINGS, *picture_settings(pictures), "--workers", "2"]
    undisturbed = tmp_path / "undisturbed"
    assert zygote.run("pretrain", *settings, "--out", str(undisturbed)).problems(0) == []
    weights = weights_of(undisturbed)
    with tally("SIGKILL of the main process, with reader processes left over") as counted:
        for seed in range(1000 * part, 1000 * part + trials):
            run, step = tmp_path / str(seed), random.Random(seed).randint(1, 7)
            with zygote.start("pretrain", *settings, "--out", str(run)) as trial:
                trial.wait_for(lambda run=run, step=step: newest_step(run) >= step)
                trial.send(signal.SIGKILL)
                trial.wait()  # its readers are ended at the end of the block only
                counted.add(f"seed {seed}", standing(run) or resumed(zygote, run, weights, settings=settings))
