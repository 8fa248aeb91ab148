"""The baseline and avt do the same: each is the other's independent reference."""

import copy
import random
import signal

import numpy as np
import pytest
import torch
from torch import Tensor

from avtcli.bench import baseline
from avtcli.config.resolution import resolve
from avtcli.contracts import Target
from avtcli.geometry import cropping as augment
from avtcli.geometry.family_building import build_family
from avtcli.geometry.homography import in_from_out_from_corners
from avtcli.models.siamese import SiameseModel
from avtcli.seeding import keyed_generator
from avtcli.training.optimizer import build_optimizer, set_rates
from avtcli.training.training_setup import TrainingSetup, build_training_setup

PROJECTIVE = build_family("projective", {"target": "coefficients"})


def noise(count: int, side: int, channels: int = 3) -> Tensor:
    return torch.randint(256, (count, channels, side, side), generator=keyed_generator("noise"), dtype=torch.uint8)


@pytest.mark.parametrize("side", [32, 224])
def test_solved_homographies_equal_those_of_the_closed_form(side: int) -> None:
    rng = random.Random(0)
    corners = [baseline.sample_corners(side, rng) for _ in range(200)]
    solved = np.stack([baseline.solve_homography(transformed, side) for transformed in corners])

    closed = in_from_out_from_corners(torch.tensor(corners, dtype=torch.float64), (side, side)).flatten(1)[:, :8]

    np.testing.assert_allclose(solved, closed.numpy(), rtol=0, atol=1e-9)


def test_the_baselines_distribution_has_the_statistics_of_ours() -> None:
    other = torch.from_numpy(baseline.sample_homographies(20_000, 32, seed=0))
    mean, std = PROJECTIVE.statistics((32, 32))

    # five standard errors of the mean of 20 000 draws
    assert ((other.mean(0) - mean).abs() < 5 * std / 20_000**0.5).all()
    torch.testing.assert_close(other.std(0), std, rtol=0.05, atol=0)


@pytest.mark.parametrize(("side", "channels"), [(32, 1), (32, 3), (224, 3)])
def test_pillows_warp_gives_the_grey_levels_of_our_batch(side: int, channels: int) -> None:
    pixels = noise(8, side, channels)
    parameters = PROJECTIVE.sample(8, (side, side), keyed_generator("warp"))
    other = [baseline.warp_image(baseline.to_pillow(p), c) for p, c in zip(pixels, parameters.numpy(), strict=True)]

    levels = 255 * (PROJECTIVE.apply(pixels / 255, parameters) - torch.stack([baseline.from_pillow(i) for i in other])).abs()

    # rounding of a coordinate can cross a grey level, or the image's edge
    assert (levels < 0.5).float().mean() > 0.999
    assert (levels < 1.5).float().mean() > 0.9999


def test_an_image_passes_through_pillow_unchanged() -> None:
    pixels = noise(2, 8)

    assert torch.equal(baseline.from_pillow(baseline.to_pillow(pixels[0])) * 255, pixels[0].float())


@pytest.mark.parametrize("flipped", [False, True])
def test_a_single_crop_gives_the_pixels_of_our_batch(flipped: bool) -> None:
    pixels, (top, left) = noise(1, 32), (7, 2)
    uniforms = torch.tensor([[(top + 0.5) / 9, (left + 0.5) / 9, 0.25 if flipped else 0.75]], dtype=torch.float64)

    ours = augment.crop_and_flip(pixels, uniforms, crop=(32, 32), padding=4)
    other = baseline.crop_and_flip(baseline.to_pillow(pixels[0]), top=top, left=left, flipped=flipped, padding=4)

    assert torch.equal(baseline.from_pillow(other) * 255, ours[0].float())


def pair_dataset(**over: object) -> baseline.PairDataset:
    settings = {"images": noise(6, 32), "padding": 4, "mean": [0.5] * 3, "std": [0.25] * 3, "seed": 0, **over}
    target_mean, target_std = [0, 0, 16, 0, 0, 16, 0, 0], [1, 1, 20, 1, 1, 20, 0.015, 0.015]
    return baseline.PairDataset(target_mean=target_mean, target_std=target_std, **settings)  # type: ignore[arg-type]


def test_a_pairs_target_decodes_to_its_warp() -> None:
    pairs = pair_dataset()
    options = {"target": "coefficients", "mean": pairs.target_mean, "std": pairs.target_std}
    family = build_family("projective", options)
    original, transformed, target = pairs[3]
    parameters = family.decode(target[None].double(), (32, 32))

    ours = family.apply(original[None] * 0.25 + 0.5, parameters)[0]

    levels = 255 * (ours - (transformed * 0.25 + 0.5)).abs()
    assert (levels < 1.5).float().mean() > 0.99  # rounding of the target moves a few pixels across the image's edge


def test_a_pair_depends_on_its_seed_and_index_alone() -> None:
    first, again, other = pair_dataset()[2], pair_dataset()[2], pair_dataset(seed=1)[2]

    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[2], other[2])


def test_batches_are_endless_and_visit_every_image_each_epoch() -> None:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 32, 32) * 40 + 10
    pairs = pair_dataset(images=images, padding=0, mean=[0.0] * 3, std=[1 / 255] * 3)
    batches = baseline.pair_batches(pairs, torch.device("cpu"), batch_size=4, workers=0)
    seen = [next(batches)[0] for _ in range(4)]

    assert [len(batch) for batch in seen] == [4, 2, 4, 2]
    for epoch in (seen[:2], seen[2:]):
        assert sorted(torch.cat(epoch)[:, 0, 0, 0].round().tolist()) == [10, 50, 90, 130, 170, 210]


def setup_of(recipe: str, **over: object) -> TrainingSetup:
    settings = {"dataset": {"name": "fashion-mini"}, "limit_train": 32, "batch_size": 8, "device": "cpu", **over}
    return build_training_setup(resolve(settings, recipe=recipe), on_event=lambda event: None)


def batch_of(setup: TrainingSetup) -> tuple[baseline.Pair, tuple[Tensor, Tensor]]:
    generator, dtype = keyed_generator("batch"), next(setup.net.parameters()).dtype
    original, transformed = torch.randn(2, 8, setup.spec.channels, *setup.size, generator=generator).to(dtype)
    target = torch.randn(8, 8, generator=generator).to(dtype)
    code = setup.net.encoder.code_shape(setup.spec.channels, setup.size)
    first, second = torch.randn(2, 8, *code, generator=generator).to(dtype)
    return (original, transformed, target), (first, second)


def our_loss(setup: TrainingSetup, net: SiameseModel, pair: baseline.Pair, eps: tuple[Tensor, Tensor]) -> Tensor:
    target = Target(pair[2], pair[2], setup.family, setup.size)
    return net.loss(net.encode(pair[:2], eps), [target]).per_sample.mean()


def test_training_has_our_losses_and_weights_step_by_step() -> None:
    """In float64, since rounding in float32 grows within a few steps."""
    setup = setup_of("cifar10-nin", backbone={"width": 0.05})
    setup.net.double()
    other = copy.deepcopy(setup.net)
    optimizers = build_optimizer(setup.config, setup.net.train()), baseline.build_optimizer(other.train())
    pair, eps = batch_of(setup)
    ours, theirs = [], []
    for step in range(4):
        for optimizer in optimizers:
            set_rates(optimizer, setup.config, step, setup.steps_per_epoch)
        loss = our_loss(setup, setup.net, pair, eps)
        loss.backward()
        optimizers[0].step()
        optimizers[0].zero_grad()
        ours.append(loss.item())
        theirs.append(baseline.train_step(other, optimizers[1], pair, eps).item())

    assert ours[0] != ours[-1]
    np.testing.assert_allclose(theirs, ours, rtol=1e-9)
    for (name, a), b in zip(setup.net.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_under_autocast_the_network_alone_computes_in_reduced_precision() -> None:
    setup = setup_of("cifar10-nin", backbone={"width": 0.05})
    net, types = setup.net.train(), dict[str, torch.dtype]()
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda _, inputs, output, name=name: types.update({name: output.dtype}))

    loss = baseline.train_step(net, baseline.build_optimizer(net), *batch_of(setup), autocast=torch.bfloat16)

    heads = [net.get_submodule(name) in baseline.decoder_heads(net) for name in types]
    assert [own == torch.float32 for own in types.values()] == heads
    assert [own == torch.bfloat16 for own in types.values()] == [not is_head for is_head in heads]
    assert (loss.dtype, loss.shape, loss.requires_grad) == (torch.float32, (), False)


def test_the_probe_learns_what_a_head_on_cached_features_learns() -> None:
    setup = setup_of("cifar10-nin", backbone={"width": 0.05})
    encoder = setup.net.encoder.eval()
    pixels, labels = noise(12, 32, 1), torch.arange(12) % 3
    batches = list(zip(pixels.split(4), labels.split(4), strict=True))
    torch.default_generator.manual_seed(0)
    cached_head = torch.nn.Linear(encoder.backbone.taps["conv2"] * 16, 3)
    head = torch.nn.Sequential(torch.nn.Flatten(), copy.deepcopy(cached_head))
    with torch.no_grad():
        cached = torch.nn.functional.adaptive_max_pool2d(encoder(encoder.normalise(pixels)), 4).flatten(1)
    optimizer = torch.optim.SGD(cached_head.parameters(), lr=0.1)
    expected = []
    for rows in torch.arange(12).split(4):
        loss = torch.nn.functional.cross_entropy(cached_head(cached[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())

    losses = baseline.probe_epoch(encoder, "conv2", head, torch.optim.SGD(head.parameters(), lr=0.1), batches)

    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_worker_processes_leave_no_signal_handler_behind() -> None:
    found = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        batches = baseline.pair_batches(pair_dataset(), torch.device("cpu"), batch_size=2, workers=1)
        next(batches)
        batches.close()

        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, found)
