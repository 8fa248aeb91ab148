"""Stopped or killed at any steps and resumed: the same bits, whatever reads the images and however much of the run is left."""

import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.trust.conftest import Reference
from tests.trust.harness import (
    SETTINGS,
    STEPS,
    Zygote,
    args_to_go_on,
    damage_of,
    finished,
    forms,
    newest_step,
    picture_settings,
    resumed,
    standing,
    steps_of,
    tally,
    weights_of,
)

JUNK = (
    b"\0" * 512,
    b"[]\nnull\n7\n",
    b'{"loss": 1.0}\n{"step": "three"}\n{"step": NaN}\n{"step": -1, "loss": 0}\n',
    b"\xff\xfe\x80\n",
    b'{"step": 3, "epo{"step": 4, "epoch": 1}\n',
    b"[" * 100_000 + b"\n",
    b'{"step": 2, "epoch": 0, "loss"',
)


def partial(zygote: Zygote, run: Path, step: int) -> Path:
    """Make a run that was killed soon after it saved a step."""
    with zygote.start("pretrain", *SETTINGS, "--out", str(run)) as trial:
        trial.wait_for(lambda: newest_step(run) >= step)
        trial.send(signal.SIGKILL)
    assert step <= newest_step(run) < STEPS, "killed too late"
    return run


@pytest.mark.parametrize(("part", "parts", "trials"), forms("resumptions"))
def test_stopped_and_resumed_with_readers_or_without(
    zygote: Zygote, pictures: Path, tmp_path: Path, part: int, parts: int, trials: int
) -> None:
    """The number of reader processes changes at each resumption."""
    settings, undisturbed = [*SETTINGS, *picture_settings(pictures)], tmp_path / "undisturbed"
    assert zygote.run("pretrain", *settings, "--workers", "0", "--out", str(undisturbed)).problems(0) == []
    with tally("stop and resume one to three times, the number of readers changing") as counted:
        for seed in range(1000 * part, 1000 * part + trials):
            draw, run, wrong = random.Random(seed), tmp_path / str(seed), list[str]()
            for step in sorted(draw.sample(range(1, STEPS - 1), draw.randint(1, 3))):
                workers, number = str(draw.choice((0, 2))), draw.choice((signal.SIGTERM, signal.SIGINT, signal.SIGKILL))
                with zygote.start(*args_to_go_on(run, settings), "--workers", workers) as trial:
                    trial.wait_for(lambda run=run, step=step: newest_step(run) >= step)
                    trial.send(number)
                    ended = trial.wait()
                code = -number if number == signal.SIGKILL else 128 + number
                wrong += ended.problems(code, 0) + standing(run, ended.stderr)
                if newest_step(run) == STEPS:
                    break
            workers, weights = str(draw.choice((0, 2))), weights_of(undisturbed)
            complete = newest_step(run) == STEPS
            wrong += finished(run, weights) if complete else resumed(zygote, run, weights, "--workers", workers)
            counted.add(f"seed {seed}", wrong)


def test_without_a_checkpoint_it_starts_at_step_0(zygote: Zygote, reference: Reference, tmp_path: Path) -> None:
    run = partial(zygote, tmp_path / "run", 2)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()

    assert resumed(zygote, run, reference.weights) == []


@pytest.mark.parametrize("junk", [b"".join(JUNK), *(pytest.param(junk, marks=pytest.mark.long) for junk in JUNK)], ids=len)
def test_junk_in_the_log_stops_nothing(zygote: Zygote, reference: Reference, tmp_path: Path, junk: bytes) -> None:
    """Bad lines are passed over, with a word; good ones stay."""
    run = partial(zygote, tmp_path / "run", 3)
    log = run / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + junk)

    assert resumed(zygote, run, reference.weights) == []


def test_a_damaged_newest_checkpoint_is_set_aside_and_saved_again(zygote: Zygote, reference: Reference, tmp_path: Path) -> None:
    run = partial(zygote, tmp_path / "run", 4)
    step, folder = newest_step(run), steps_of(run)[newest_step(run)]
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert damage_of(folder)

    assert resumed(zygote, run, reference.weights) == []
    assert (run / "checkpoints" / f"step-{step:010d}.damaged").is_dir()


def test_a_damaged_last_checkpoint_is_saved_again(zygote: Zygote, reference: Reference, tmp_path: Path) -> None:
    """The run is complete but for it: it goes on from the one before, and the same step is saved anew."""
    run = tmp_path / "run"
    shutil.copytree(reference.run, run)
    (steps_of(run)[STEPS] / "state.safetensors").write_bytes(b"")

    assert resumed(zygote, run, reference.weights) == []


def test_leftovers_of_killed_writers_are_cleared(zygote: Zygote, reference: Reference, tmp_path: Path) -> None:
    run = partial(zygote, tmp_path / "run", 2)
    for where in ("checkpoints/.tmp-0000000003-abandoned", "checkpoints/.tmp-0000000003-abandoned/inner"):
        (run / where).mkdir()
        (run / where / "model.safetensors").write_bytes(b"torn")

    assert resumed(zygote, run, reference.weights) == []
    assert not [path for path in run.rglob("*") if "tmp" in path.name]
