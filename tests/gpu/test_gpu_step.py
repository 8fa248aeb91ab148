"""The training step on a GPU: captured, compiled, without a wait; run with `-m gpu` where there is one."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from avtcli.config.pretrain_config import PretrainConfig
from avtcli.data import resident_images
from avtcli.events import Notice, ignore
from avtcli.models.layers import StemConv2d
from avtcli.runtime import capture
from avtcli.runtime.capture import CapturedCalls
from avtcli.training.optimizer import build_optimizer, optimizer_tensors
from avtcli.training.step import Trainer
from avtcli.training.training_setup import build_training_setup
from tests.support import Result, tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # PyTorch's own call
]

SETTINGS: dict[str, Any] = {"limit_train": 72, "batch_size": 16, "epochs": 50, "device": "cuda", "eval_every": 0}
"""Epochs of five steps, the last of each with 8 images."""
DROPPING = {"name": "timm:vit_tiny_patch16_224", "args": {"patch_size": "8", "depth": "2", "drop_path_rate": "0.5"}}
Run = Callable[[str], Result]


def config_of(**over: Any) -> PretrainConfig:
    return tiny_config(**{**SETTINGS, **over})


def trained(config: PretrainConfig, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of some steps, and the state after them."""
    setup = build_training_setup(config, on_event=ignore)
    trainer = Trainer(setup, build_optimizer(setup.config, setup.net))
    batches = setup.build_loader(setup.open_images()).read(0, steps)
    losses = [trainer.step(step, batch).figures[0] for step, batch in enumerate(batches)]
    return torch.stack(losses).tolist(), {**setup.net.state_dict(), **optimizer_tensors(trainer.optimizer)[0]}


@contextmanager
def no_wait() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("backbone", [{"width": 0.125}, DROPPING])
def test_a_captured_step_is_the_step_bit_for_bit(
    backbone: dict[str, Any], optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With noise, dropped paths, rates that change, and partial batches in between."""
    config = config_of(backbone=backbone, optimizer={"name": optimizer}, schedule={"rate": 1e-3})
    losses, state = trained(config, 23)
    monkeypatch.setattr(capture, "WARM_UP", 10**9)
    expected, own = trained(config, 23)

    assert losses == expected
    assert len(set(losses)) == 23
    assert all(torch.equal(state[name], tensor) for name, tensor in own.items())


def test_a_captured_step_has_the_losses_of_an_eager_one_and_of_a_compiled_one() -> None:
    eager, captured, compiled = (
        trained(config_of(backbone={"width": 0.25}, precision="fp32", optimizer={"name": "sgd"}, **way), 12)[0]
        for way in ({"capture": False}, {"capture": True}, {"capture": True, "compile": True})
    )

    # BatchNorm on 16 images amplifies the rounding of each step
    assert captured[:3] == pytest.approx(eager[:3], rel=1e-4)
    assert captured == pytest.approx(eager, rel=0.05)
    assert compiled[0] == pytest.approx(eager[0], rel=2e-3)  # a convolution of one pixel becomes a product, in full float32
    assert compiled == pytest.approx(eager, rel=0.05)


def test_checkpointed_activations_take_less_memory() -> None:
    peaks = []
    for checkpointed in (False, True):
        gc.collect()  # of what tests before hold
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trained(config_of(backbone={"width": 1.0}, batch_size=64, checkpoint_activations=checkpointed, capture=False), 2)
        peaks.append(torch.cuda.max_memory_allocated() - before)

    assert peaks[1] < 0.75 * peaks[0]


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("objective", ["avt", "gaussian", "aet", "simclr", "rotnet", "avt+simclr"])
def test_nothing_in_a_step_waits_for_the_device(objective: str, captured: bool) -> None:
    transform = {"name": {"simclr": "affine+photometric", "rotnet": "rotation"}.get(objective, "projective")}
    config = config_of(objective={"name": objective}, transform=transform, capture=captured)
    setup = build_training_setup(config, on_event=ignore)
    trainer = Trainer(setup, build_optimizer(setup.config, setup.net))
    batches = setup.build_loader(setup.open_images()).read(0, 25)
    for step in range(6):  # one of them captures
        trainer.step(step, next(batches))

    with no_wait():
        results = [trainer.step(step, batch) for step, batch in enumerate(batches, start=6)]
    assert len(results) == 19
    assert torch.stack([result.figures for result in results]).isfinite().all()


def test_an_objective_that_waits_goes_on_uncaptured_and_says_so() -> None:
    notices: list[Any] = []
    config = config_of(objective={"name": "aetv2"})
    setup = build_training_setup(config, on_event=ignore)
    trainer = Trainer(setup, build_optimizer(setup.config, setup.net), on_event=notices.append)
    results = [trainer.step(i, b) for i, b in enumerate(setup.build_loader(setup.open_images()).read(0, 8))]

    assert torch.stack([result.figures for result in results]).isfinite().all()
    assert [n.text.partition(" cannot be captured as a CUDA graph")[0] for n in notices] == ["the training step"]


@pytest.mark.parametrize("waits", ["item", "synchronize"])
def test_work_that_waits_is_not_captured_and_stays_right(waits: str) -> None:
    notices: list[Notice] = []
    calls = CapturedCalls[Tensor](torch.device("cuda"), name="this", on_event=notices.append)  # type: ignore[arg-type]
    total = torch.zeros((), device="cuda")

    def work(x: Tensor) -> Tensor:
        total.add_(x.sum())
        if waits == "item":
            return x * x.sum().item()
        torch.cuda.synchronize()
        return x * x.sum()

    for i in range(8):
        x = torch.full((3,), float(i), device="cuda")
        assert calls([x], lambda x=x: work(x)).tolist() == [3.0 * i * i] * 3
    assert total.item() == 3 * sum(range(8))
    assert [n.text.split(" ")[0] for n in notices] == ["this"]


def test_captured_work_takes_its_inputs_from_wherever_they_lie() -> None:
    calls = CapturedCalls[Tensor](torch.device("cuda"))
    for i in range(9):
        x, y = torch.full((5,), float(i), device="cuda"), torch.arange(5.0, device="cuda")
        assert torch.equal(calls([x, y], lambda x=x, y=y: x * y + 1), i * torch.arange(5.0, device="cuda") + 1)


def batches_of(config: PretrainConfig, start: int, stop: int) -> list[tuple[Tensor, ...]]:
    """Rows, targets and the grey levels of both views, (B, C, H, W), on the CPU."""
    setup = build_training_setup(config, on_event=ignore)
    mean, std = setup.net.encoder.pixel_mean, setup.net.encoder.pixel_std
    return [
        (b.indices, b.targets[0].values.cpu(), *(((view * std + mean) * 255).cpu() for view in b.views))
        for b in setup.build_loader(setup.open_images()).read(start, stop)
    ]


@pytest.mark.parametrize("place", ["device", "host"])
def test_batches_are_those_of_the_cpu(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == "host":  # where the GPU has no room
        monkeypatch.setattr(resident_images, "has_room", lambda device, count: device.type != "cuda")
    there, here = (batches_of(config_of(device=device), 2, 14) for device in ("cuda", "cpu"))

    for (rows, targets, *views), (own_rows, own_targets, *own_views) in zip(there, here, strict=True):
        assert torch.equal(rows, own_rows)
        torch.testing.assert_close(targets, own_targets)
        original, transformed = ((a - b).abs() for a, b in zip(views, own_views, strict=True))
        assert original.max() < 0.01
        assert transformed.max() < 1.01  # a level that is rounded down may fall on either side of an integer
        assert (transformed > 0.01).double().mean() < 0.01


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_are_those_of_the_cpu(workers: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for i in range(48):
        pixels = torch.randint(256, (36, 40, 3), generator=generator, dtype=torch.uint8).numpy()
        (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"class{i % 2}" / f"{i:02}.png")
    over: dict[str, Any] = {"dataset": {"name": f"folder:{tmp_path}"}, "augment": {"resize": 34, "crop": 32}, "limit_train": 40}
    there, here = (batches_of(config_of(device=device, workers=workers, **over), 0, 9) for device in ("cuda", "cpu"))

    for (rows, _, original, _), (own_rows, _, own_original, _) in zip(there, here, strict=True):
        assert torch.equal(rows, own_rows)
        assert (original - own_original).abs().max() < 0.01


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("before", [0, 2, 7])
def test_a_step_that_is_not_finite_changes_nothing(name: str, before: int) -> None:
    """The first step, one before the capture and a captured one."""
    setup = build_training_setup(config_of(optimizer={"name": name}, limit_train=320), on_event=ignore)
    trainer = Trainer(setup, build_optimizer(setup.config, setup.net))
    batches = setup.build_loader(setup.open_images()).read(0, before + 2)
    for step in range(before):
        trainer.step(step, next(batches))

    def state() -> dict[str, Tensor]:
        return {**setup.net.state_dict(), **optimizer_tensors(trainer.optimizer)[0]}

    kept = {name: tensor.clone() for name, tensor in state().items()}
    batch = next(batches)
    bad = replace(batch, views=(batch.views[0] * float("nan"), batch.views[1]))

    assert trainer.step(before, bad).skipped
    assert all(torch.equal(tensor, kept.get(name, torch.zeros_like(tensor))) for name, tensor in state().items())
    assert not trainer.step(before + 1, next(batches)).skipped
    assert all(tensor.isfinite().all() for tensor in state().values())


@pytest.mark.parametrize(("channels", "stride", "padding", "bias"), [(1, 1, 2, False), (3, 4, 2, True)])
def test_the_first_convolution_is_a_convolution(channels: int, stride: int, padding: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = StemConv2d(channels, 12, 5, stride=stride, padding=padding, bias=bias).double().cuda()
    x = torch.randn(4, channels, 23, 27, dtype=torch.float64, device="cuda")
    out, expected = conv(x), functional.conv2d(x, conv.weight, conv.bias, stride, padding)
    there, here = (torch.autograd.grad(y.square().sum(), conv.parameters()) for y in (out, expected))

    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(there, here)


def test_a_compiled_run_resumes_bit_for_bit(avt: Run) -> None:
    line = "pretrain --limit-train 200 -o backbone.width=0.25 --batch-size 32 --eval-every 0 --compile --epochs 9"
    assert avt(f"{line} --max-steps 15 --out whole").code == 0
    assert avt(f"{line} --max-steps 6 --out stopped").code == 0
    assert avt("pretrain --resume stopped --max-steps 15").code == 0

    files = [Path(run, "checkpoints/step-0000000015/model.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert files[0] == files[1]
