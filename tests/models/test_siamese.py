"""The Siamese model's activations, kept or computed again."""

from typing import Any

import pytest
import torch
from torch import Tensor

from avtcli.events import ignore
from avtcli.models.siamese import SiameseModel
from avtcli.training.training_setup import build_training_setup
from tests.support import tiny_config

DROPPING = {"name": "timm:vit_tiny_patch16_224", "args": {"patch_size": "8", "depth": "2", "drop_path_rate": "0.5"}}


def step_of(backbone: dict[str, Any], *, checkpointed: bool) -> tuple[int, list[Tensor | None], dict[str, Tensor]]:
    """The bytes kept for the backward pass, the gradients, and the state after a forward and a backward pass."""
    setup = build_training_setup(tiny_config(backbone=backbone, checkpoint_activations=checkpointed), on_event=ignore)
    net: SiameseModel = setup.net.train()
    batch = next(setup.build_loader(setup.open_images()).read(0, 1))
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = net.loss(net.encode(batch.views), batch.targets)
    loss.per_sample.sum().backward()
    return sum(kept), [p.grad for p in net.parameters()], net.state_dict()


@pytest.mark.parametrize("backbone", [{"width": 0.1}, {"name": "timm:resnet18"}, DROPPING])
def test_checkpointed_activations_change_nothing_but_memory(backbone: dict[str, Any]) -> None:
    kept, gradients, state = step_of(backbone, checkpointed=False)
    less, others, other_state = step_of(backbone, checkpointed=True)

    assert less < 0.1 * kept
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, gradient, rtol=0, atol=0)
    assert all(torch.equal(other_state[name], tensor) for name, tensor in state.items())
