"""Loaded encoders on a CUDA GPU: their checks, captured and compiled."""

import threading
from pathlib import Path

import pytest
import torch

import avtcli

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # PyTorch's own call
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),  # Inductor's advice
]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)).cuda()


def test_an_encoder_on_the_gpu_refuses_what_it_refuses_elsewhere(tiny_run: Path, images: torch.Tensor) -> None:
    encoder = avtcli.load_encoder(tiny_run, device="cuda")

    assert encoder(encoder.normalise(images)).is_cuda
    with pytest.raises(avtcli.AvtError, match="found values from"):
        encoder.normalise(255 * images)
    with pytest.raises(avtcli.AvtError, match=r"on cpu, the weights torch.float32 on cuda:0: give images.to\('cuda:0'"):
        encoder(images.cpu())


def test_the_checks_stand_in_the_way_of_no_capture_and_no_compilation(tiny_run: Path, images: torch.Tensor) -> None:
    encoder = avtcli.load_encoder(tiny_run, device="cuda").requires_grad_(False)
    expected, graph = encoder(encoder.normalise(images)), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = encoder(encoder.normalise(images))
    graph.replay()
    compiled = torch.compile(lambda x: encoder(encoder.normalise(x)), fullgraph=True)

    torch.testing.assert_close(captured, expected)
    torch.testing.assert_close(compiled(images), expected, rtol=1e-3, atol=1e-3)


def test_a_run_from_a_thread_has_the_weights_of_one_from_the_main_thread() -> None:
    settings = {"limit_train": 400, "batch_size": 50, "max_steps": 8, "eval_every": 0, "options": {"backbone.width": 0.0625}}
    thread = threading.Thread(target=avtcli.pretrain, kwargs={**settings, "out": "thread", "device": "cuda"})
    thread.start()
    thread.join()
    avtcli.pretrain(**settings, out="main", device="cuda")
    there, here = (Path(run, "checkpoints/step-0000000008/model.safetensors").read_bytes() for run in ("thread", "main"))

    assert there == here
