"""BatchNorm statistics on a CUDA GPU."""

import copy

import pytest
import torch

from avtcli.config.components import Plugin
from avtcli.config.model_spec import ModelSpec
from avtcli.contracts import MemorySplit
from avtcli.data.resident_images import ResidentImages
from avtcli.features.batch_statistics import prepare_baseline
from avtcli.models.model_building import build_encoder
from avtcli.runtime.devices import Context
from avtcli.runtime.execution import prepare_for_inference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def test_a_random_baseline_has_the_statistics_that_it_has_on_the_cpu() -> None:
    spec = ModelSpec(backbone=Plugin(name="timm:resnet18"), channels=3, size=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)
    images = torch.randint(0, 256, (300, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    random, states = build_encoder(spec).eval(), []
    for device in (torch.device("cpu"), torch.device("cuda")):
        encoder = prepare_for_inference(copy.deepcopy(random), device)
        source = ResidentImages(MemorySplit(images, None, prefix="x"), torch.arange(300), device=device)
        states.append(prepare_baseline(encoder, source, (64, 64), context=Context(device)).state_dict())

    assert states[1]["backbone.model.layer4.1.bn2.running_var"].is_cuda
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name].cpu(), tensor, rtol=1e-2, atol=1e-3)
