"""The Siamese model: running statistics of each view, activations kept or computed again."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from avtcli.events import ignore
from avtcli.models.siamese import SiameseModel, batch_norms
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


@pytest.mark.parametrize("way", ["per-view", "shared"])
@pytest.mark.parametrize("backbone", [{"width": 0.1}, {"name": "timm:resnet18"}])
def test_running_statistics_are_averages_over_the_batches_of_a_view(backbone: dict[str, Any], way: str) -> None:
    """By the definition: of the first layer's inputs, momentum 0.1, unbiased variance."""
    setup = build_training_setup(tiny_config(backbone=backbone, model={"bn_statistics": way}), on_event=ignore)
    net: SiameseModel = setup.net.train()
    layer, norm = next(batch_norms(net.encoder))
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().double()))
    expected = [(torch.zeros(norm.num_features).double(), torch.ones(norm.num_features).double()) for _ in range(2)]
    for batch in setup.build_loader(setup.open_images()).read(0, 3):
        net.encode(batch.views)
        for view, x in enumerate(seen):
            places = [view] if way == "per-view" else [0, 1]
            for place in places:
                mean, var = expected[place]
                expected[place] = 0.9 * mean + 0.1 * x.mean((0, 2, 3)), 0.9 * var + 0.1 * x.var((0, 2, 3))
        seen.clear()

    state = net.state_dict()
    originals = [state[f"encoder.{layer}.{name}"].double() for name in ("running_mean", "running_var")]
    torch.testing.assert_close(originals, list(expected[0]), rtol=1e-4, atol=1e-5)
    assert ("transformed" in {name.split(".")[0] for name in state}) == (way == "per-view")
    if way == "per-view":
        other = [state[f"transformed.{layer.replace('.', '/')}/{name}"].double() for name in ("running_mean", "running_var")]
        torch.testing.assert_close(other, list(expected[1]), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(originals[0], other[0], rtol=1e-3)


def test_the_decoder_reads_each_view_by_its_own_statistics() -> None:
    setup = build_training_setup(tiny_config(model={"bn_statistics": "per-view"}), on_event=ignore)
    net: SiameseModel = setup.net
    (x, y), *_ = (batch.views for batch in setup.build_loader(setup.open_images()).read(0, 1))
    for name, buffer in net.named_buffers():
        if name.startswith("transformed.") and name.endswith("running_mean"):
            buffer += 0.5
    shifted = copy.deepcopy(net.encoder)
    for _, norm in batch_norms(shifted):
        norm.running_mean += 0.5
    with torch.no_grad():
        codes = net.eval().encode([x, y])
        own = [encoder.eval().encode(view)[0] for encoder, view in ((net.encoder, x), (shifted, y))]

    torch.testing.assert_close(codes, tuple(own), rtol=0, atol=0)
    assert not torch.allclose(own[1], net.encoder.encode(y)[0])


@pytest.mark.parametrize("objective", ["simclr", "rotnet"])
def test_without_originals_there_is_one_set(objective: str) -> None:
    family = {"simclr": "affine+photometric", "rotnet": "rotation"}[objective]
    config = tiny_config(objective={"name": objective}, transform={"name": family})

    assert build_training_setup(config, on_event=ignore).net.transformed is None
