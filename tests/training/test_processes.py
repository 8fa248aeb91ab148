"""Several processes: what depends on the whole batch sees all of it, with gradients through every process."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import Result

VIT = "timm:vit_tiny_patch16_224 -o backbone.args.patch_size=8 -o backbone.args.depth=2 -o backbone.args.num_heads=2"
"""LayerNorm alone, for batch statistics are each process's own; the log-variance of a noisy code has some too."""
LINE = (
    f"pretrain --backbone {VIT} -o backbone.args.embed_dim=24 --transform affine+photometric "
    "--limit-train 25 --batch-size 9 --max-steps 5 --eval-every 0 --device cpu -o optimizer.name=sgd"
)


def test_an_error_of_all_processes_is_reported_once(avt_process: Callable[..., Result]) -> None:
    result = avt_process("pretrain --limit-train 40 --batch-size 2 --processes 2 --max-restarts 2 --device cpu --out run")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]

    assert result.code == 2
    assert errors == [
        "error: 2 processes need batches of 4 images or more, this run has 2. Give fewer --processes or a larger --batch-size."
    ]
    assert "Traceback" not in result.stderr
    assert "Restart" not in result.stderr  # it would fail alike
    assert not Path("run").exists()


def assert_equal_runs(one: Path, two: Path, figure: str) -> None:
    """Losses, a figure of the objective, and the last weights."""
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)]
    assert [[line["step"] for line in run] for run in lines] == [[1, 2, 3, 4, 5]] * 2
    for a, b in zip(*lines, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a[figure] == pytest.approx(b[figure], abs=1e-5)
    weights = [load_file(run / "checkpoints/step-0000000005/model.safetensors") for run in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_simclr_has_the_whole_batch_as_negatives_in_two_processes_which_report_once(
    avt: Callable[..., Result], avt_process: Callable[..., Result]
) -> None:
    one = avt(f"{LINE} --objective simclr --lr 0.1 --out one")
    two = avt_process(f"{LINE} --objective simclr --lr 0.1 --out two --processes 2 --json")

    assert (one.code, two.code) == (0, 0), one.stderr + two.stderr
    assert_equal_runs(Path("one"), Path("two"), "accuracy")
    assert two.json["steps"] == 5
    assert two.stderr.count("batch     9 over 2 processes") == 1


SUM = f"{LINE} --objective avt+simclr --lr 0.002 -o objective.avt.noise_scale=0"
TOGETHER = """
import sys
from dataclasses import replace
import torch
from typer.testing import CliRunner
from avtcli.cli.app import app
from avtcli.events import ignore
from avtcli.training.optimizer import build_optimizer, optimizer_tensors
from avtcli.training.step import Trainer
from avtcli.training.training_setup import build_training_setup
from tests.support import tiny_config

def state():
    return {**setup.net.state_dict(), **optimizer_tensors(trainer.optimizer)[0]}

trained = CliRunner().invoke(app, sys.argv[1:]).exit_code
setup = build_training_setup(tiny_config(device="cpu"), on_event=ignore)
trainer = Trainer(setup, build_optimizer(setup.config, setup.net))
first, second, third = setup.build_loader(setup.open_images()).read(0, 3)
trainer.step(0, first)
before = {name: tensor.clone() for name, tensor in state().items()}
if setup.accelerator.process_index == 1:
    second = replace(second, views=(second.views[0] * float("nan"), second.views[1]))
skipped = bool(trainer.step(1, second).skipped)
same = all(torch.equal(tensor, before[name]) for name, tensor in state().items())
print(trained, skipped, same, bool(trainer.step(2, third).skipped))
torch.distributed.destroy_process_group()
"""


def test_a_sum_in_two_processes_and_a_step_that_is_not_finite_in_one_of_them(
    avt: Callable[..., Result], free_port: int
) -> None:
    """The sum has the whole batch as negatives too; after the bad step, weights and optimiser of both are unchanged."""
    root = Path(__file__).parents[2]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    shared["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "plugins")])
    variables = [{**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    command = [sys.executable, "-c", TOGETHER, *f"{SUM} --out two".split()]
    processes = [subprocess.Popen(command, env=env, stdout=-1, text=True) for env in variables]
    one = avt(f"{SUM} --out one")

    assert [process.communicate(timeout=240)[0] for process in processes] == ["0 True True False\n"] * 2
    assert one.code == 0, one.stderr
    assert_equal_runs(Path("one"), Path("two"), "simclr")


@pytest.fixture
def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_restarts_are_of_processes_that_avt_starts(avt: Callable[..., Result]) -> None:
    result = avt("pretrain --max-restarts 2 --dry-run")

    assert result.code == 2
    assert result.stderr == "error: --max-restarts starts what --processes starts, again: give --processes N too.\n"
