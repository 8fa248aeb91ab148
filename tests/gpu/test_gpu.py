"""Every command on a GPU: run with `-m gpu` where there is one."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from avtcli import load_encoder
from tests.support import Result

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # PyTorch's own call
]

TINY = "--limit-train 200 -o backbone.width=0.125 --batch-size 32 --eval-every 0"
Run = Callable[[str], Result]


def state_of(run: str, step: int) -> dict[str, str]:
    folder = Path(run, "checkpoints", f"step-{step:010d}")
    files = ("model.safetensors", "state.safetensors")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}


def losses(run: str) -> list[float]:
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture
def run(avt: Run) -> str:
    assert avt(f"pretrain {TINY} --max-steps 6 --out run").code == 0
    return "run"


@pytest.mark.parametrize("objective", ["avt", "gaussian", "aet", "aetv2", "simclr", "rotnet --transform rotation"])
def test_every_objective_trains_in_bf16_near_its_float32_losses(avt: Run, objective: str) -> None:
    for precision in ("bf16", "fp32"):
        line = f"pretrain {TINY} --objective {objective} --max-steps 4 --precision {precision} --device cuda"
        assert avt(f"{line} --out {precision}").code == 0

    assert losses("bf16") == pytest.approx(losses("fp32"), rel=0.05, abs=0.05)


def test_a_float32_step_on_the_gpu_is_the_step_on_the_cpu(avt: Run) -> None:
    for device in ("cuda", "cpu"):
        avt(f"pretrain {TINY} --max-steps 3 --precision fp32 --device {device} --out {device}")

    # the noise of the code is drawn on the device: with the release's scale of 0.001 it hardly matters
    there, here = losses("cuda"), losses("cpu")
    assert there[0] == pytest.approx(here[0], rel=1e-3)
    assert there == pytest.approx(here, rel=0.01)  # AdamW's first steps amplify the rounding


def test_two_runs_and_a_resumed_one_are_bit_equal(avt: Run) -> None:
    for name in ("one", "two"):
        assert avt(f"pretrain {TINY} --max-steps 12 --out {name}").code == 0
    avt(f"pretrain {TINY} --max-steps 5 --out stopped")
    resumed = avt("pretrain --resume stopped --max-steps 12")

    assert resumed.code == 0, resumed.stderr
    assert state_of("one", 12) == state_of("two", 12)
    assert state_of("one", 12) == state_of("stopped", 12)


@pytest.mark.parametrize("head", ["linear", "mlp2", "knn", "ridge"])
def test_probes_on_the_gpu_agree_with_those_on_the_cpu(avt: Run, run: str, head: str) -> None:
    epochs = "" if head in ("knn", "ridge") else "--epochs 5 --lr 0.01"
    line = f"probe {run} --layer conv2 --head {head} {epochs} --limit-train 500 --no-baseline --json"
    found: list[Any] = [avt(f"{line} --device {device}").json["results"][0]["top1"] for device in ("cuda", "cpu")]

    assert found[0] == pytest.approx(found[1], abs=1.5)


def test_evaluate_embed_and_export_agree_with_the_cpu(avt: Run, run: str) -> None:
    figures = [avt(f"evaluate {run} --count 60 --device {device} --json").json for device in ("cuda", "cpu")]
    for device in ("cuda", "cpu"):
        assert avt(f"embed {run} --split test --device {device} --out {device}.safetensors").code == 0
    exported = avt(f"export {run} --out encoder.safetensors --json")
    images = torch.rand(3, 1, 32, 32)
    encoder = load_encoder("encoder.safetensors")
    on_gpu = load_encoder("encoder.safetensors").cuda()

    assert figures[0]["mace_px"] == pytest.approx(figures[1]["mace_px"], rel=0.01)
    assert figures[0]["ridge"][0]["r2"] == pytest.approx(figures[1]["ridge"][0]["r2"], abs=0.01)
    torch.testing.assert_close(
        load_file("cuda.safetensors")["conv2"], load_file("cpu.safetensors")["conv2"], rtol=2e-2, atol=2e-2
    )
    assert exported.json["max_abs_diff"] < 1e-5
    with torch.no_grad():
        here, there = (e(e.normalise(x)).cpu() for e, x in ((encoder, images), (on_gpu, images.cuda())))
    torch.testing.assert_close(here, there, rtol=2e-2, atol=2e-2)


def test_a_compiled_step_keeps_the_losses(avt: Run) -> None:
    for name, flag in (("eager", "--no-compile"), ("compiled", "--compile")):
        assert avt(f"pretrain {TINY} --max-steps 5 {flag} --precision fp32 --out {name}").code == 0

    compiled, eager = losses("compiled"), losses("eager")
    assert compiled[0] == pytest.approx(eager[0], rel=1e-5)
    assert compiled == pytest.approx(eager, rel=0.01)  # AdamW's first steps amplify the rounding


def test_the_monitor_evaluates_on_the_gpu(avt: Run) -> None:
    line = TINY.replace("--eval-every 0", "--eval-every 1")
    result = avt(f"pretrain {line} --epochs 1 --out run --json")

    assert result.code == 0, result.stderr
    evaluations = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines() if '"eval"' in line]
    assert len(evaluations) == 2
    assert all(0 <= e["eval"]["knn_top1"] <= 100 and e["eval"]["mace_px"] > 0 for e in evaluations)
