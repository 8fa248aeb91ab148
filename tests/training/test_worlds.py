"""A run over one, two or three processes is the same run: same draws, same steps, and weights equal but for rounding."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.support import write_cifar10

ROOT = Path(__file__).parents[2]
VARIABLES = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")])}
FORKS = r"""
import importlib, json, os, socket, sys, warnings
import torch._dynamo, timm, matplotlib.pyplot
from typer.testing import CliRunner
from avtcli.cli.app import app
for name in ("training.pretrain", "evaluation.evaluate", "embedding.embed"):
    importlib.import_module(f"avtcli.{name}")
importlib.import_module("avtcli.training.training_setup").HELD_OUT_COUNT = 60

def become(rank, world, line):
    if world > 1:
        shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in {"RANK": rank, "LOCAL_RANK": rank, **shared}.items()})
    result = CliRunner().invoke(app, line.replace("{rank}", str(rank)).split())
    ended = [world, rank, result.exit_code, result.stdout, result.stderr, repr(result.exception)]
    os.write(1, json.dumps(ended).encode() + b"\n")  # at once: the other processes write too
    os._exit(0)

for world, line in json.loads(sys.argv[1]):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    children = []
    for rank in range(world):
        children.append(os.fork())
        if not children[-1]:
            become(rank, world, line)
    for child in children:
        os.waitpid(child, 0)
"""
"""Runs command lines one after the other, each in a number of processes that are forked: imports take longer than such runs.

`{rank}` in a line is the number of the process.
"""


Ended = tuple[int, int, int, str, str, str]
"""Number of processes, rank, exit code, stdout, stderr, and what was raised."""


def run_forked(*lines: tuple[int, str], folder: Path) -> list[list[Ended]]:
    """Run command lines in numbers of processes; return how the processes of each line ended, by rank."""
    command = [sys.executable, "-c", FORKS, json.dumps(lines)]
    ended = subprocess.run(command, cwd=folder, env=VARIABLES, capture_output=True, text=True, timeout=600, check=True)
    found = iter([json.loads(line) for line in ended.stdout.splitlines()])
    return [sorted(next(found) for _ in range(world)) for world, _ in lines]


VIT = (
    "timm:vit_tiny_patch16_224 -o backbone.args.patch_size=8 -o backbone.args.depth=2 -o backbone.args.num_heads=2 "
    "-o backbone.args.embed_dim=24 -o backbone.args.qkv_bias=false -o objective.noise_scale=0"
)
"""LayerNorm alone, and no weight whose gradient is 0 but for rounding, as of a bias of keys, which AdamW makes a whole step."""
SHORT = "pretrain --device cpu --eval-every 0 --max-steps 4"
LINE = f"{SHORT} --limit-train 25 --batch-size 9"
"""An epoch of three batches, the last of 7 images, and a step of the next."""
NIN = f"{LINE} -o backbone.width=0.0625 -o optimizer.name=sgd --lr 0.0001"
UNEVEN = f"{SHORT} --limit-train 20 --batch-size 8 -o backbone.width=0.0625 --epochs 2"
"""A last batch of 4 images: two for each of two processes, and not of three."""
KNN = "probe one --limit-train 600 --head knn"
LINES = {
    **{f"sgd{n}": (n, f"{LINE} --backbone {VIT} -o optimizer.name=sgd --lr 0.005 --out sgd{n}") for n in (1, 2, 3)},
    **{f"adamw{n}": (n, f"{LINE} --backbone {VIT} --lr 0.001 --out adamw{n}") for n in (1, 2, 3)},
    "one": (1, f"{NIN} --out one"),
    "synchronised": (2, f"{NIN} --sync-bn --out synchronised"),
    "apart": (2, f"{NIN} --out apart"),
    "two": (2, f"{UNEVEN} --out two"),
    **{f"embed{n}": (n, f"embed one --limit-train 600 --layer conv1,conv2 --out embed{n}.npz") for n in (1, 3)},
    **{f"knn{n}": (n, f"{KNN} --layer conv1,conv2 --shots 5,20 --out knn{n}.json --json") for n in (1, 3)},
    **{f"evaluate{n}": (n, f"evaluate one --count 300 --out evaluate{n}.json --json") for n in (1, 2)},
    "refused": (3, "pretrain --resume two"),
    "rates": (2, f"{NIN}{{rank}} --out rates"),  # 0.00010 and 0.00011
    "folder": (2, f"{NIN} --out folder{{rank}}"),
    "images": (2, f"{SHORT} --dataset cifar10 --data-dir data{{rank}} --out images"),
    "absent": (3, f"{SHORT} --dataset folder:absent{{rank}} --out absent"),
    "seeds": (2, f"{KNN} --layer conv1,conv2 --seed {{rank}}"),
    "three": (3, f"{UNEVEN} --out three"),
}


@dataclass(frozen=True)
class Runs:
    """What `LINES` did, by name."""

    folder: Path
    ended: dict[str, list[Ended]]

    def codes(self, name: str) -> list[int]:
        return [code for _, _, code, *_ in self.ended[name]]

    def stderr(self, name: str) -> str:
        return "".join(process[4] for process in self.ended[name])

    def weights(self, name: str, step: int = 4) -> dict[str, torch.Tensor]:
        assert set(self.codes(name)) == {0}, self.ended[name]
        return load_file(self.folder / name / f"checkpoints/step-{step:010d}/model.safetensors")

    def losses(self, name: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("worlds")
    for rank in (0, 1):
        write_cifar10(folder / f"data{rank}", seed=rank)
        (folder / f"absent{rank}").mkdir()
        for level in range(8):
            Image.new("RGB", (32, 32), (level, 0, 0)).save(folder / f"absent{rank}" / f"{level}.png")
    return Runs(folder, dict(zip(LINES, run_forked(*LINES.values(), folder=folder), strict=True)))


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert list(one) == list(other)
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.mark.parametrize(("optimizer", "tolerance"), [("sgd", 1e-6), ("adamw", 1e-4)])
def test_one_two_and_three_processes_end_at_the_same_weights(runs: Runs, optimizer: str, tolerance: float) -> None:
    one = runs.weights(f"{optimizer}1")
    assert largest_difference(one, runs.weights(f"{optimizer}1", 0)) > 10 * tolerance
    for other in (f"{optimizer}2", f"{optimizer}3"):
        assert largest_difference(one, runs.weights(other)) < tolerance
        assert runs.losses(other) == pytest.approx(runs.losses(f"{optimizer}1"), rel=1e-6)
        assert len(runs.losses(other)) == 4


GRADIENTS = """
import copy, os, sys, torch
from torch import nn
from avtcli.errors import AvtError, RunFailedError
from avtcli.models.layers import synchronise_batch_norms
from avtcli.runtime.processes import map_shared, run_in_main, shared_rows
torch.manual_seed(0)
first = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
net = nn.Sequential(*first, nn.Linear(288, 5, bias=False), nn.BatchNorm1d(5)).double()
x, factors, one = torch.randn(7, 3, 8, 8).double(), torch.randn(7, 5).double(), copy.deepcopy(net)
(one(x) * factors).sum().backward()
rank = int(not os.fork())
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
synchronise_batch_norms(net)
(net(x[rank::2]) * factors[rank::2]).sum().backward()
for own, whole in zip(net.parameters(), one.parameters(), strict=True):
    torch.distributed.all_reduce(own.grad)
    torch.testing.assert_close(own.grad, whole.grad)
torch.testing.assert_close(list(net.buffers()), list(one.buffers()))
group, rows, batches = torch.distributed.group.WORLD, torch.zeros(5, 2), list(torch.arange(5).split(2))
with shared_rows(group, [rows], batches) as own:
    for batch in own:
        rows[batch] = 1.0 + rank + batch[:, None]
assert rows[:, 0].tolist() == [1, 2, 3, 4, 6] and len(own) == 2 - rank
assert map_shared(group, lambda item: (item, rank), "abc") == [("a", 0), ("b", 1), ("c", 0)]
try:
    with shared_rows(group, [rows], batches):
        if rank:
            raise AvtError("of one process")
except AvtError as error:
    assert str(error) == "of one process"

def fill_disk():
    if torch.distributed.get_rank() == failing:
        raise OSError(28, "No space left on device")

exchanges = lambda: map_shared(group, lambda item: fill_disk(), "ab"), lambda: run_in_main(group, fill_disk)
for failing, exchange in zip((1, 0), exchanges):
    try:
        exchange()
    except OSError as error:  # in the process whose disk it is, as it was
        assert rank == failing and error.errno == 28
    except RunFailedError as error:
        assert str(error) == f"Process {failing} failed: OSError: [Errno 28] No space left on device."
    else:
        raise AssertionError(failing)
torch.distributed.barrier()  # both are there still: neither waited for the end of the other
os.write(1, b"equal\\n")
os._exit(0)
"""


def test_two_processes_share_statistics_rows_and_failures(tmp_path: Path) -> None:
    """Gradients through statistics of 4 and 3 images are those of PyTorch's own BatchNorm of one process."""
    command = [sys.executable, "-c", GRADIENTS, tmp_path / "group"]
    ended = subprocess.run(command, env=VARIABLES, capture_output=True, text=True, check=False)

    assert ended.stdout == "equal\n" * 2, ended.stderr


def test_synchronised_statistics_are_those_of_one_process(runs: Runs) -> None:
    """Statistics of originals and transformed images apart, and those of the log-variance of the noisy code."""
    one = runs.weights("one")

    assert any("/running_mean" in name for name in one)
    assert largest_difference(one, runs.weights("synchronised")) < 1e-4
    assert largest_difference(one, runs.weights("apart")) > 1e-2


def test_whose_statistics_are_taken_is_said_and_kept(runs: Runs) -> None:
    said = "over 2 processes, BatchNorm statistics of"

    assert runs.stderr("synchronised").count(f"{said} all processes") == 1
    assert runs.stderr("apart").count(f"{said} each process alone (--sync-bn: of all)") == 1
    assert "BatchNorm" not in runs.stderr("one") + runs.stderr("sgd2")
    assert "sync_bn = true" in (runs.folder / "synchronised" / "config.toml").read_text()


def test_a_number_of_processes_that_changes_the_steps_is_said_and_refused_on_resumption(runs: Runs) -> None:
    assert "steps     4 (3 an epoch, 2 epochs)\n" in runs.stderr("two")
    joined = "(2 an epoch, 2 epochs); the last 4 images of an epoch join the batch before, as each process needs 2\n"
    assert joined in runs.stderr("three")
    assert runs.codes("refused") == [2, 2, 2]
    assert "two has 3 steps an epoch with --processes 2, and would have 2 with 3" in runs.stderr("refused")
    assert "the last 4 images of an epoch are too few for 3. Give --processes 2." in runs.stderr("refused")


def test_features_of_three_processes_are_those_of_one_in_one_file(runs: Runs) -> None:
    """Shares of whole batches: 600 training images are 3 batches, 1000 test images 4."""
    one, three = (np.load(runs.folder / f"embed{n}.npz") for n in (1, 3))

    assert one.files == three.files
    assert len(one["conv1"]) > 1000
    for name in ("conv1", "conv2", "labels", "names"):
        np.testing.assert_array_equal(three[name], one[name])
    assert runs.codes("embed3") == [0, 0, 0]
    assert sum("file    embed3.npz" in process[3] for process in runs.ended["embed3"]) == 1


@pytest.mark.parametrize(
    ("name", "differing"),
    [
        ("rates", "schedule.rate is 0.0001 in process 0, 0.00011 in process 1."),
        ("folder", "--out is 'folder0' in process 0, 'folder1' in process 1."),
        ("images", "fingerprint of the images is '"),
        ("seeds", "seed is 0 in process 0, 1 in process 1."),
    ],
)
def test_processes_that_were_started_differently_say_in_what(runs: Runs, name: str, differing: str) -> None:
    assert runs.codes(name) == [2, 2]
    for _, _, _, _, stderr, _ in runs.ended[name]:
        assert stderr.splitlines()[-1].startswith(f"error: The processes do not do the same: {differing}")
        assert " more differ" not in stderr
    assert not list(runs.folder.glob(f"{name}*"))


def test_a_process_that_cannot_start_ends_the_others(runs: Runs) -> None:
    """Images that one machine lacks: the others would wait for hours."""
    assert runs.codes("absent") == [2, 2, 2]
    for _, _, _, _, stderr, _ in runs.ended["absent"]:
        assert re.match("error: .*absent2", stderr.splitlines()[-1])


@pytest.mark.parametrize(("name", "processes"), [("knn", 3), ("evaluate", 2)])
def test_measures_of_several_processes_are_those_of_one(runs: Runs, name: str, processes: int) -> None:
    one, several = (json.loads((runs.folder / f"{name}{n}.json").read_text()) for n in (1, processes))

    assert one == several
    totals = [set(re.findall(r"^(.*): (\d+)/\2 (?:images|pairs)", runs.stderr(f"{name}{n}"), re.M)) for n in (1, processes)]
    assert totals[0] == totals[1] != set()  # the progress is that of all processes
    assert [bool(process[3]) for process in runs.ended[f"{name}{processes}"]] == [True, *[False] * (processes - 1)]
    assert len(list((runs.folder / "one" / "probes").glob("*.json"))) == 2
