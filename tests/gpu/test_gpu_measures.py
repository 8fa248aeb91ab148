"""Features and heads on a GPU: cached there, trained as one CUDA graph, without waiting for it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from avtcli.config.components import Plugin
from avtcli.config.model_spec import ModelSpec
from avtcli.config.probe_config import ProbeConfig
from avtcli.config.resolution import resolve_plugin
from avtcli.contracts import MemorySplit
from avtcli.data.resident_images import ResidentImages
from avtcli.events import Event, Progress, ignore
from avtcli.features.cache_storage import CPU, choose_storage
from avtcli.features.feature_cache import CachedFeatures, extract
from avtcli.features.feature_reader import Feature, ForwardedImages, LabelledImages
from avtcli.models.model_building import build_encoder
from avtcli.probing import head_training
from avtcli.probing.head import TrainedHead
from avtcli.probing.head_training import Curve, HeadTraining, RowSubset, train_heads
from avtcli.probing.heads import resolve_head
from avtcli.probing.joint_heads import Heads, HeadSpec, fit_batch, start_heads
from avtcli.runtime.capture import WARM_UP, CapturedCalls
from avtcli.runtime.devices import Context
from avtcli.runtime.execution import prepare_for_inference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CUDA = torch.device("cuda")
COUNT, BATCH, FULL, EPOCHS = 100, 16, 6, 4  # six full batches and a rest of four images in each epoch
FEATURES = [Feature("a", "none", 4), Feature("b", "none", 4), Feature("vector", "none", 4)]


def cached(device: torch.device) -> CachedFeatures:
    """Two maps and a vector of images whose class shows in them."""
    generator, labels = torch.Generator().manual_seed(0), torch.arange(COUNT) % 5
    maps = torch.randn(COUNT, 2, 2, 2, 6, generator=generator) + labels.view(-1, 1, 1, 1, 1) / 2
    vectors = torch.randn(COUNT, 7, generator=generator) - labels.view(-1, 1)
    values = (maps[:, 0].movedim(-1, 1), maps[:, 1].movedim(-1, 1), vectors)
    return CachedFeatures({f: own.to(device) for f, own in zip(FEATURES, values, strict=True)}, labels, device=device)


def train(config: ProbeConfig, device: torch.device, on_event: Any = ignore) -> list[Curve]:
    reader, rows, head = cached(device), torch.arange(COUNT), resolve_head(config.head)
    assert isinstance(head, TrainedHead)
    specs = [HeadSpec(feature, rate) for feature in FEATURES for rate in (0.03, 0.003)]
    training = HeadTraining(head, config, 5, Context(device, on_event=on_event), "x")
    return train_heads(RowSubset(reader, rows), RowSubset(reader, rows), specs, training)


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Heads], list[int]]:
    """The heads of each training, and the number of images of each batch that Python fitted."""
    started: list[Heads] = []
    fitted: list[int] = []
    monkeypatch.setattr(head_training, "start_heads", lambda *a, **k: (started.append(start_heads(*a, **k)), started[-1])[1])
    monkeypatch.setattr(head_training, "fit_batch", lambda *a: (fitted.append(len(a[2])), fit_batch(*a))[1])
    return started, fitted


def tensors_of(heads: Heads) -> list[Tensor]:
    return [parameter.detach().cpu() for parameters in heads.parameters for parameter in parameters]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", ["linear", "mlp2"])
def test_captured_heads_are_those_of_single_launches_and_of_the_cpu(
    spied: tuple[list[Heads], list[int]], monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    started, fitted = spied
    config = ProbeConfig.model_validate({"head": kind, "optimizer": {"name": name}, "epochs": EPOCHS, "batch_size": BATCH})
    on_gpu = train(config, CUDA)
    calls = fitted.copy()
    monkeypatch.setattr(head_training, "CapturedCalls", lambda device, enabled: CapturedCalls(device, enabled=False))
    launched = train(config, CUDA)

    assert (calls.count(BATCH), calls.count(COUNT % BATCH)) == (WARM_UP + 1, EPOCHS)
    assert fitted[len(calls) :].count(BATCH) == FULL * EPOCHS
    assert on_gpu == launched
    for captured, single in zip(*map(tensors_of, started), strict=True):
        torch.testing.assert_close(captured, single, rtol=1e-5, atol=1e-5)
    if (kind, name) == ("linear", "sgd"):
        train(config, CPU)
        for captured, ours in zip(tensors_of(started[0]), tensors_of(started[2]), strict=True):
            torch.testing.assert_close(captured, ours, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_an_epoch_of_heads_does_not_wait_for_the_gpu() -> None:
    steps, modes = FULL + 1, []

    def watch(event: Event) -> None:
        if isinstance(event, Progress) and event.done in (steps, 3 * steps):  # the second and third epoch
            torch.cuda.set_sync_debug_mode("error" if event.done == steps else "default")
            modes.append(torch.cuda.get_sync_debug_mode())

    config = ProbeConfig(epochs=EPOCHS, batch_size=BATCH)
    try:
        train(config, CUDA, watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert modes == [2, 0]


def test_features_cached_on_the_gpu_are_those_cached_on_the_cpu() -> None:
    backbone = resolve_plugin("backbone", Plugin.model_validate({"name": "nin", "width": 0.125}))
    spec = ModelSpec(backbone=backbone, channels=1, size=(32, 32), mean=(0.5,), std=(0.5,))
    encoder, labels = build_encoder(spec, seed=0).eval(), torch.arange(600) % 3
    pixels = torch.randint(0, 256, (600, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    found = []
    for device, storage in ((CPU, CPU), (CUDA, CPU), (CUDA, choose_storage(1000, device=CUDA))):
        images = ResidentImages(MemorySplit(pixels, None, prefix="x"), torch.arange(600), device=device)
        data = LabelledImages(images, labels.to(device), "train", (32, 32))
        wanted = [Feature(layer, "max", 4) for layer in ("conv1", "conv2")]
        net = prepare_for_inference(encoder, device)
        reader = ForwardedImages(net, data, wanted, augment=None, samples=0, seed=0)
        found.append(extract(reader, storage=storage, task="x", on_event=ignore))

    for expected, in_memory, on_gpu in zip(*(features.values() for features in found), strict=True):
        assert (in_memory.device.type, on_gpu.device.type) == ("cpu", "cuda")
        torch.testing.assert_close(on_gpu.cpu(), in_memory, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(in_memory, expected, rtol=2e-2, atol=2e-2)  # convolutions in TF32, other batches
