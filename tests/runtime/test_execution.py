"""Execution settings: their defaults by device, their record in the run, their effect on the losses."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from avtcli.config.pretrain_config import PretrainConfig
from avtcli.errors import AvtError
from avtcli.events import ignore
from avtcli.runtime import execution as module
from avtcli.runtime.execution import resolve_execution, to_channels_last
from avtcli.storage.checkpoints import load_newest
from avtcli.training.optimizer import build_optimizer, load_optimizer, optimizer_tensors
from avtcli.training.training_setup import build_training_setup
from tests.support import run_tiny, tiny_config, write_cifar10


def resolved(device: str, *, processes: int = 1, steps: int = 100, **given: Any) -> PretrainConfig:
    return resolve_execution(PretrainConfig(**given), device, processes=processes, steps=steps, on_event=ignore)


@pytest.mark.parametrize(
    ("device", "last", "fused", "captured"),
    [("cpu", True, True, False), ("cuda", True, True, True), ("mps", False, False, False)],
)
def test_unset_options_follow_the_class_of_device(device: str, last: bool, fused: bool, captured: bool) -> None:
    config = resolved(device)

    assert (config.channels_last, config.optimizer.fused, config.capture) == (last, fused, captured)
    assert config.compile is False


@pytest.mark.parametrize(("device", "compiled"), [("cpu", False), ("cuda", True)])
def test_long_runs_on_a_gpu_are_compiled(device: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "what_compiling_lacks", lambda device: "")
    assert resolved(device, steps=400_000).compile is compiled
    monkeypatch.setattr(module, "what_compiling_lacks", lambda device: "Triton")
    assert resolved(device, steps=400_000).compile is False


@pytest.mark.parametrize("hindered", [{"processes": 2}, {"precision": "fp16"}, {"optimizer": {"fused": False}}])
def test_what_cannot_be_captured_is_not_and_says_so_where_it_was_asked_for(hindered: dict[str, Any]) -> None:
    config, notices = PretrainConfig(capture=True, **{k: v for k, v in hindered.items() if k != "processes"}), list[Any]()
    found = resolve_execution(config, "cuda", processes=hindered.get("processes", 1), steps=9, on_event=notices.append)

    assert found.capture is False
    assert [n.text.split(":")[0] for n in notices] == ["steps are not captured"]


def test_stated_options_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "what_compiling_lacks", lambda device: "")
    given = {"channels_last": False, "compile": True, "capture": False, "optimizer": {"fused": False}}

    assert resolved("cpu", **given) == PretrainConfig(**given)


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AvtError, match=r"Compiling needs a C\+\+ compiler \(g\+\+ or clang\+\+\), which is not here"):
        resolved("cpu", compile=True)


def test_a_compiler_that_fails_is_explained() -> None:
    with (
        pytest.raises(AvtError, match=r"The network cannot be compiled here .*\. Give --no-compile\."),
        module.compile_errors_explained(),
    ):
        torch.compile(lambda x: x.sin(), backend=lambda graph, inputs: 1 / 0)(torch.ones(1))  # type: ignore[call-overload]


def test_a_run_reports_and_stores_its_settings_and_contiguous_tensors(tmp_path: Path) -> None:
    events: list[Any] = []
    run = run_tiny(tmp_path / "run", max_steps=1, on_event=events.append)
    stored = tomllib.loads((run / "config.toml").read_text())
    facts = next(dict(e.facts) for e in events if hasattr(e, "facts"))
    checkpoint = load_newest(run / "checkpoints")

    assert (stored["precision"], stored["channels_last"], stored["compile"]) == ("fp32", True, False)
    assert stored["optimizer"]["fused"]
    assert facts["device"].endswith("fp32, channels last, fused optimiser")
    assert all(t.is_contiguous() for t in [*checkpoint.model.values(), *checkpoint.state.values()])


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_layout_and_fused_optimiser_change_rounding_only(tmp_path: Path) -> None:
    """BatchNorm on small batches amplifies the rounding of each step, hence the looser bound after the first loss."""
    chosen, plain = (
        losses(run_tiny(tmp_path / str(i), channels_last=way, optimizer={"fused": way})) for i, way in enumerate((True, False))
    )

    assert chosen[0] == pytest.approx(plain[0], rel=1e-5)
    assert chosen == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize(
    ("backbone", "layer"), [("nin", "conv2"), ("timm:resnet18", "layer2"), ("timm:mobilenetv3_small_050", "blocks.1")]
)
@pytest.mark.parametrize("dataset", ["fashion-mini", "cifar10"])
def test_maps_are_channels_last_and_large_weights_contiguous_on_a_cpu(
    backbone: str, layer: str, dataset: str, tmp_path: Path
) -> None:
    """One channel and three: the layout of a first weight with one channel is ambiguous."""
    write_cifar10(tmp_path)
    settings = {"dataset": {"name": dataset}, "data_dir": str(tmp_path), "backbone": {"name": backbone}, "device": "cpu"}
    configs = (tiny_config(**settings, channels_last=last) for last in (True, False))
    nets = [build_training_setup(config, on_event=ignore).net.encoder.eval() for config in configs]
    x = torch.randn(2, nets[0].pixel_mean.numel(), 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        last, plain = (net.features(x, [layer])[layer] for net in nets)

    assert last.is_contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    assert plain.is_contiguous()
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-4)
    large = [p for p in nets[0].parameters() if p.ndim == 4 and p.shape[1] > 4 and p.shape[2] > 1]
    assert bool(large) == (backbone != "timm:mobilenetv3_small_050")
    assert all(p.is_contiguous() for p in large)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_of_other_than_four_dimensions_keep_their_layout(device: str) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv3d(4, 4, 3)).to(device)
    to_channels_last(net)

    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert net[1].weight.is_contiguous()


def test_bf16_changes_the_losses_within_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchNorm on 16 images amplifies the rounding of each step, hence the looser bound after the first loss."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)  # emulated where missing
    half, single = (losses(run_tiny(tmp_path / name, precision=name)) for name in ("bf16", "fp32"))
    kept = load_newest(tmp_path / "bf16" / "checkpoints", on_event=ignore)

    assert half != single
    assert half[0] == pytest.approx(single[0], rel=0.005)
    assert half == pytest.approx(single, rel=0.1)
    assert {t.dtype for t in [*kept.model.values(), *kept.state.values()] if t.is_floating_point()} == {torch.float32}


def test_bf16_on_a_cpu_without_bf16_instructions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(AvtError, match=r"This CPU has no bf16 arithmetic, .* slower\. Choose --precision fp32\."):
        run_tiny(tmp_path / "run", device="cpu", precision="bf16")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_fused_optimiser_resumes_exactly_from_contiguous_state(name: str) -> None:
    """Loaded state is contiguous and weights are channels last: a fused step must index both alike."""

    def optimizer_of() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        setup = build_training_setup(tiny_config(optimizer={"name": name}), on_event=ignore)
        setup.net.to(memory_format=torch.channels_last)  # all weights, as on a GPU
        optimizer = build_optimizer(setup.config, setup.net)
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        return setup.net, optimizer

    def step(net: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in net.parameters():
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
        optimizer.step()

    continuous, optimizer = optimizer_of()
    step(continuous, optimizer, 1)
    tensors, groups = optimizer_tensors(optimizer)
    weights = {n: t.clone(memory_format=torch.contiguous_format) for n, t in continuous.state_dict().items()}
    resumed, second = optimizer_of()
    resumed.load_state_dict(weights)
    load_optimizer(second, {n: t.clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}, groups)
    for net, opt in ((continuous, optimizer), (resumed, second)):
        step(net, opt, 2)

    assert any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in continuous.parameters())
    for (key, a), b in zip(continuous.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
