"""`avt pretrain`: messages, exit codes, JSON, resumption, signals, processes."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import run_tiny

pytestmark = pytest.mark.usefixtures("few_held_out_images")

TINY = "-o backbone.width=0.05 --limit-train 40 --batch-size 16 --device cpu --eval-every 0"


def test_json_is_one_document_with_the_documented_fields(avt) -> None:
    result = avt(f"pretrain {TINY} --max-steps 2 --out run --json")

    assert result.code == 0
    assert set(result.json) == {
        "run",
        "steps",
        "epochs",
        "seconds",
        "loss",
        "mace_px",
        "constant_mace_px",
        "evaluated_on",
        "labelled",
        "recipe",
        "skipped_steps",
        "skipped_images",
    }
    assert (result.json["run"], result.json["steps"], result.json["recipe"]) == ("run", 2, "default")
    assert 10 < result.json["mace_px"] < 60
    assert 23 < result.json["constant_mace_px"] < 25


def test_stderr_states_recipe_device_data_batch_and_steps(avt) -> None:
    result = avt(f"pretrain {TINY} --epochs 2 --out run")

    for text in ("recipe    default", "fashion-mini: 40 images, 1x32x32", "cpu (1 thread), fp32", "batch     16"):
        assert text in result.stderr
    assert "steps     6 (3 an epoch, 2 epochs)" in result.stderr
    assert "run      run" in result.stdout
    assert "\nnext:\n  avt probe run\n" in result.stdout


def test_a_dry_run_checks_all_and_writes_nothing(avt) -> None:
    result = avt(f"pretrain {TINY} --dry-run --json")

    assert (result.code, result.json["recipe"], result.json["config"]["batch_size"]) == (0, "default", 16)
    assert list(Path().iterdir()) == []


def test_the_runs_own_config_does_the_same_run_again(avt) -> None:
    avt(f"pretrain {TINY} --max-steps 3 --lr 0.003 --out one")
    avt("pretrain --recipe one/config.toml --out two")

    weights = [Path(run, "checkpoints/step-0000000003/model.safetensors").read_bytes() for run in ("one", "two")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("last", ["--resume last", "--resume run", "--resume=run"])
def test_resume_continues_the_newest_or_the_named_run(avt, last: str) -> None:
    avt(f"pretrain {TINY} --max-steps 2 --out {'run' if 'run' in last else 'runs/run'}")
    result = avt(f"pretrain {last} --max-steps 3 --json")

    assert (result.code, result.json["steps"]) == (0, 3)


@pytest.mark.usefixtures("exports_load_here")
def test_a_dry_run_of_a_resumed_run_needs_no_initial_weights(avt) -> None:
    avt(f"pretrain {TINY} --max-steps 1 --out first")
    avt("export first --out weights.safetensors")
    avt(f"pretrain {TINY} --max-steps 1 --init-from weights.safetensors --out run")
    Path("weights.safetensors").unlink()
    result = avt("pretrain --resume run --max-steps 3 --dry-run --json")

    assert (result.code, result.json["steps"]) == (0, 3), result.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--backbone nni", "No backbone is called 'nni'. Did you mean 'nin'?"),
        ("--dataset cifer10", "No dataset is called 'cifer10'. Did you mean 'cifar10'?"),
        ("--recipe cifar10-nim", "No recipe is called 'cifar10-nim'. Did you mean 'cifar10-nin'?"),
        ("-o backbone.widht=1", "The backbone 'nin' has no option 'widht'. Did you mean 'width'?"),
        ("-o backbone.width=big", "option 'width' should be a valid number"),
        ("-o backbone.width=-1", "needs a width above 0, found -1.0"),
        ("-o schedule.rat=1", "schedule.rat: there is no such setting. Did you mean 'rate'?"),
        ("-o width=1", "-o takes KIND.KEY=VALUE"),
        (
            "--dataset cifar10:nowhere",
            "/nowhere. Expected: cifar-10-batches-py/data_batch_1 ... test_batch",
        ),
        ("--resume nowhere", "There is no run to resume in nowhere"),
        ("--resume last", "There is no run under runs"),
        ("--resume", "Option '--resume' requires an argument"),
        ("-o head.k=5", "-o takes no kind 'head' here. Kinds: dataset, model, backbone, transform, objective, augment"),
        ("--epochs 0", "Invalid value for '--epochs'"),
        ("--epochs many", "Invalid value for '--epochs'"),
        ("--device tpu", "Invalid value for '--device'"),
        ("--epoch 3", "No such option: --epoch"),
        ("--save-every 60", "Invalid value for '--save-every'"),
        ("--save-every 0", "save_every: Input should be greater than 0, found 0.0"),
        ("--resume run --out other", "leave out --out and --recipe"),
        ("photos extra", "unexpected extra argument"),
    ],
)
def test_bad_usage_is_one_message_and_exit_code_2(avt, line: str, message: str) -> None:
    result = avt(f"pretrain {line}")

    assert result.code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert (result.stdout, list(Path().iterdir())) == ("", [])


def test_an_existing_run_folder_is_not_touched(avt) -> None:
    Path("run").mkdir()
    Path("run/precious").write_text("keep")
    result = avt(f"pretrain {TINY} --out run")

    assert result.code == 2
    assert "run exists already and is not overwritten. Choose another --out" in result.stderr
    assert [p.name for p in Path("run").iterdir()] == ["precious"]


def test_an_existing_run_names_the_option_that_goes_on_with_it(avt, tiny_run: Path) -> None:
    result = avt(f"pretrain {TINY} --out {tiny_run}")

    assert result.code == 2
    assert "go on with it by --resume instead of --out, or move" in " ".join(result.stderr.split())


@pytest.mark.parametrize("flag", ["--lr 0.1", "--batch-size 8", "--seed 3", "--backbone nin", "-o augment.flip=no"])
def test_resume_refuses_settings_that_change_the_results(avt, flag: str) -> None:
    avt(f"pretrain {TINY} --max-steps 1 --out run")
    result = avt(f"pretrain --resume run {flag}")

    assert result.code == 2
    assert "--resume continues with the run's own settings: leave out" in result.stderr


def test_a_run_with_only_truncated_checkpoints_is_refused(avt) -> None:
    avt(f"pretrain {TINY} --max-steps 1 --out run")
    for path in Path("run/checkpoints").glob("*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    result = avt("pretrain --resume run")

    assert result.code == 2
    assert "has no complete checkpoint, the newest: " in result.stderr
    assert "it was cut short" in result.stderr


def test_a_damaged_checkpoint_is_set_aside_and_saved_again(avt) -> None:
    avt(f"pretrain {TINY} --max-steps 4 --out run")
    before, path = weights("run", 4), Path("run/checkpoints/step-0000000004/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = avt("pretrain --resume run")

    assert result.code == 0
    assert "step-0000000004 is damaged and is set aside as step-0000000004.damaged" in result.stderr
    assert weights("run", 4) == before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("batch_size = 8", "batch_size is 8, was 16. A run keeps its settings"),
        ("seed = 1", "config.toml was edited: seed is 1, was 0"),
    ],
)
def test_an_edited_setting_that_changes_the_results_is_refused(avt, edit: str, message: str) -> None:
    avt(f"pretrain {TINY} --max-steps 1 --out run")
    config, key = Path("run/config.toml"), edit.split()[0]
    edited = re.sub(rf"(?m)^{key} = .*$", edit, config.read_text())
    config.write_text(edited)
    result = avt("pretrain --resume run --max-steps 2")

    assert (result.code, config.read_text()) == (2, edited)
    assert message in result.stderr


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"\0" * 99), Path.unlink], ids=["zeros", "deleted"])
def test_a_complete_checkpoint_is_enough_to_go_on(avt, damage: Callable[[Path], object]) -> None:
    avt(f"pretrain {TINY} --max-steps 4 --out run")
    damage(Path("run/config.toml"))
    Path("run/metrics.jsonl").write_bytes(b"\0\0[1]\n{}")
    Path("run/env.json").write_text("[" * 10**5)
    result = avt("pretrain --resume run --max-steps 9")
    avt(f"pretrain {TINY} --max-steps 9 --out whole")

    assert result.code == 0, result.stderr
    assert "the settings come from the checkpoint" in result.stderr
    assert weights("run", 9) == weights("whole", 9)
    assert Path("run/config.toml").read_text() == Path("whole/config.toml").read_text()


def test_settings_that_change_on_resumption_are_announced_and_kept(avt) -> None:
    avt(f"pretrain {TINY} --workers 3 --max-steps 1 --out run")
    result = avt("pretrain --resume run --workers auto --max-steps 3 --save-every 5")
    longer = avt("pretrain --resume run --epochs 60 --max-steps 999 --dry-run")
    for text in (
        "setting changed: epochs is 60, was None",
        "steps     180 (3 an epoch, 60 epochs); --max-steps 999 changes nothing",
    ):
        assert text in longer.stderr

    for text in ("setting changed: max_steps is 3, was 1", "setting changed: save_every is 5.0, was 10.0"):
        assert text in result.stderr
    assert "save_every = 5.0" in Path("run/config.toml").read_text()
    assert "workers" not in Path("run/config.toml").read_text()
    before = json.loads(Path("run/env.json").read_text())
    for less in (avt("pretrain --resume run --max-steps 2"), avt("pretrain --resume run --max-steps 2 --dry-run")):
        assert less.code == 2
        assert "run has reached step 3, beyond the 2 steps asked for" in less.stderr
    after = json.loads(Path("run/env.json").read_text())
    assert (after["steps"], after["failure"]) == (before["steps"], before["failure"]) == (3, None)  # nothing befell the run
    assert json.loads(Path("run/result.json").read_text())["steps"] == 3
    done = avt("pretrain --resume run")
    assert "run is complete: for more give --epochs or --max-steps" in done.stderr


def test_a_run_folder_whose_name_is_not_utf8_is_read_again(avt, avt_process) -> None:
    name = os.fsdecode(b"run\xff")
    made = avt_process(f"pretrain {TINY} --max-steps 1 --out {name}")
    again = avt(f"pretrain --resume {name} --max-steps 2 --json")

    assert (made.code, again.code) == (0, 0), made.stderr + again.stderr
    assert "saved run\\udcff/checkpoints" in made.stderr
    assert again.json["steps"] == 2


def start(*args: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "avtcli", "pretrain", *f"{TINY} --out run".split(), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(path: str) -> None:
    for _ in range(600):
        if list(Path().glob(path)):
            return
        time.sleep(0.1)
    raise TimeoutError(path)


def weights(run: str, step: int) -> str:
    folder = Path(run, "checkpoints", f"step-{step:010d}")
    return hashlib.sha256(b"".join((folder / f"{n}.safetensors").read_bytes() for n in ("model", "state"))).hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The last weights of 16 epochs that nothing disturbed."""
    return weights(str(run_tiny(tmp_path_factory.mktemp("runs") / "whole", device="cpu", epochs=16)), 48)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signalled_run_saves_and_resumes_to_the_same_weights(avt, whole: str, number: signal.Signals) -> None:
    process = start("--epochs", "16")
    wait_for("run/metrics.jsonl")
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 128 + number
    assert out == ""
    assert "stopping after this step; again to leave at once" in err
    assert err.endswith(f"the state is saved. Go on with:\n  avt pretrain --resume {Path('run').absolute()}\n")
    assert "Traceback" not in err
    avt("pretrain --resume run")
    assert weights("run", 48) == whole


def test_a_killed_process_loses_nothing_that_was_saved(avt, whole: str) -> None:
    process = start("--epochs", "16", "--save-every", "1e-9")
    wait_for("run/checkpoints/step-000000000[5-9]")
    process.kill()
    process.communicate(timeout=60)
    avt("pretrain --resume run")

    assert process.returncode == -signal.SIGKILL
    assert weights("run", 48) == whole
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 49))
