"""BatchNorm statistics estimated from images, and what makes random weights a fair baseline."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli import load_encoder
from avtcli.config.components import Plugin
from avtcli.config.model_spec import ModelSpec
from avtcli.contracts import MemorySplit
from avtcli.data.resident_images import ResidentImages
from avtcli.events import ignore
from avtcli.features.batch_statistics import (
    STATISTICS_IMAGES,
    describe_baseline,
    estimate_batch_statistics,
    prepare_baseline,
    silent_scales,
)
from avtcli.models.encoder import Encoder
from avtcli.models.model_building import build_encoder
from avtcli.runtime.devices import Context

CPU = torch.device("cpu")
Statistics = dict[nn.Module, tuple[Tensor, Tensor]]


def pixels(count: int, side: int = 32, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randint(0, 256, (count, channels, 4, 4), dtype=torch.uint8, generator=generator)
    return functional.interpolate(coarse, (side, side), mode="nearest")


def network(name: str, *, side: int = 64) -> Encoder:
    backbone = Plugin(name=f"timm:{name}")
    return build_encoder(ModelSpec(backbone=backbone, channels=3, size=(side, side), mean=(0.5,) * 3, std=(0.25,) * 3)).eval()


def run_by_hand(layers: nn.Module, x: Tensor, found: Statistics) -> Tensor:
    """Forward through NIN's layers in float64, with the mean and the variance of what each BatchNorm takes, over all images."""
    for layer in layers.children():
        if isinstance(layer, nn.Conv2d):
            x = functional.conv2d(x, layer.weight.double(), padding=layer.padding)
        elif isinstance(layer, nn.BatchNorm2d):
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
            count = x.numel() / x.shape[1]
            found[layer] = mean.flatten(), var.flatten() * count / (count - 1)
            weight, bias = (p.double().view(-1, 1, 1) for p in (layer.weight, layer.bias))
            x = (x - mean) / (var + layer.eps).sqrt() * weight + bias
        elif isinstance(layer, nn.Sequential):
            x = run_by_hand(layer, x, found)
        elif not isinstance(layer, nn.Dropout):
            x = layer(x)
    return x


@torch.no_grad()
def statistics_by_hand(encoder: Encoder, batches: Sequence[Tensor]) -> Statistics:
    """The mean over batches of the statistics of every BatchNorm, by module."""
    each: list[Statistics] = []
    for batch in batches:
        found: Statistics = {}
        x = batch.double()
        for name in ("conv1", "conv2", "log_var", "conv3", "conv4"):
            if name == "log_var":
                assert encoder.log_var is not None
                run_by_hand(encoder.log_var, x, found)
            else:
                x = run_by_hand(encoder.backbone.get_submodule(name), x, found)
        each.append(found)
    return {m: tuple(torch.stack([f[m][i] for f in each]).mean(0) for i in (0, 1)) for m in each[0]}


@pytest.mark.parametrize("batches", [1, 3])
def test_statistics_are_those_of_every_batch_norms_input(tiny_run: Path, batches: int) -> None:
    """One batch: the mean and the variance over all images. Neither dropout nor the noise of the code is in them."""
    encoder = load_encoder(tiny_run)
    encoder.noise_scale = 1000.0
    encoder.backbone.conv3.insert(1, nn.Dropout(0.9))
    parts = [encoder.normalise(part) for part in pixels(60).chunk(batches)]
    expected = statistics_by_hand(encoder, parts)
    weights = {name: p.clone() for name, p in encoder.named_parameters()}
    estimate_batch_statistics(encoder.train(), parts)

    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert set(norms) == set(expected)
    assert len(norms) == 13
    for norm, (mean, var) in expected.items():
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-4, atol=1e-6)
        assert norm.momentum == 0.1
    assert not any(module.training for module in encoder.modules())
    assert all(torch.equal(p, weights[name]) and p.grad is None for name, p in encoder.named_parameters())


def test_estimating_again_forgets_the_earlier_images(tiny_run: Path) -> None:
    once, twice = load_encoder(tiny_run), load_encoder(tiny_run)
    x = once.normalise(pixels(20))
    estimate_batch_statistics(twice, [x + 3, x - 1])
    for encoder in (once, twice):
        estimate_batch_statistics(encoder, [x])

    assert all(map(torch.equal, once.state_dict().values(), twice.state_dict().values()))


def test_random_residual_blocks_see_the_whole_image_as_a_baseline() -> None:
    """A block that starts with a BatchNorm of zeros is its shortcut, which reads the upper left pixel of each cell."""
    encoder, images = network("resnet18"), pixels(12, 64, 3)
    far = images.clone()
    far[..., 40:] = 255 - far[..., 40:]  # the left cells of layer4 are 32 px wide

    def upper_left(images: Tensor) -> Tensor:
        with torch.no_grad():
            return encoder.features(encoder.normalise(images), ["layer4"])["layer4"][:, :, 0, 0]

    assert upper_left(images).shape == (12, 512)
    assert torch.equal(upper_left(images), upper_left(far))
    expected = "random weights, BatchNorm statistics of 12 training images, layer scales that start near 0 set to 1"
    assert describe_baseline(encoder, [12]) == expected
    source = ResidentImages(MemorySplit(images, None, prefix="x"), torch.arange(12), device=CPU)
    prepare_baseline(encoder, source, (64, 64), context=Context(CPU))

    difference = (upper_left(images) - upper_left(far)).abs().mean(1)
    assert (difference > 0.1 * upper_left(images).std(0).mean()).all()


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("resnet18", {"bn2.weight"}),
        ("levit_128", {"bn.weight"}),
        ("test_nfnet", {"gain"}),
        ("test_convnext", {"gamma"}),
        ("vit_relpos_small_patch16_224", {"ls1.gamma", "ls2.gamma"}),
        ("resmlp_12_224", {"ls1", "ls2"}),
        ("poolformer_s12", {"layer_scale1.scale", "layer_scale2.scale"}),
        ("test_vit", set()),
    ],
)
def test_scales_that_silence_a_layer_are_found(name: str, scales: set[str]) -> None:
    encoder = network(name, side=224)
    silent, names = silent_scales(encoder), {p: name for name, p in encoder.named_parameters()}

    assert all(any(names[p].endswith(f".{scale}") for scale in scales) for p in silent), [names[p] for p in silent]
    assert all(any(names[p].endswith(f".{scale}") for p in silent) for scale in scales)
    norms = [m for m in encoder.modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm)) and m.weight is not None]
    assert {m.weight for m in norms if not m.weight.any()} <= set(silent)


def test_what_is_added_or_mixed_is_no_scale() -> None:
    net = nn.Module()
    net.norm, net.linear = nn.BatchNorm1d(8), nn.Linear(8, 8)
    for name, shape in (("beta", (1, 1, 8)), ("cls_token", (1, 1, 8)), ("pos_embed", (1, 4, 8))):
        net.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    nn.init.zeros_(net.linear.weight)

    assert silent_scales(net) == []
    net.skipinit_gain = nn.Parameter(torch.tensor(0.0))
    with torch.no_grad():
        net.norm.weight.uniform_(-1e-3, 1e-3)  # as after a first step of training
    assert [*map(id, silent_scales(net))] == [id(net.skipinit_gain), id(net.norm.weight)]


def test_a_thousand_images_are_drawn_by_the_seed_and_the_words_say_so(tiny_run: Path) -> None:
    images = ResidentImages(MemorySplit(pixels(1100), None, prefix="x"), torch.arange(1100), device=CPU)
    first, again, other = (load_encoder(tiny_run) for _ in range(3))
    for encoder, seed in ((first, 0), (again, 0), (other, 1)):
        prepare_baseline(encoder, images, (32, 32), context=Context(CPU, seed=seed, on_event=ignore))

    states = [encoder.state_dict().values() for encoder in (first, again, other)]
    assert all(map(torch.equal, states[0], states[1]))
    assert not all(map(torch.equal, states[0], states[2]))
    assert STATISTICS_IMAGES == 1000
    assert describe_baseline(first, [60_000]) == "random weights, BatchNorm statistics of 1 000 training images"
    assert describe_baseline(first, [60_000, 500]) == "random weights, BatchNorm statistics of 500 and 1 000 training images"
    assert describe_baseline(nn.Linear(2, 2), [60_000]) == "random weights"
