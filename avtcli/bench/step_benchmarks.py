"""Measured: the training step, the loop around it, and the arithmetic in it."""

import copy
import time
from collections.abc import Callable, Iterator
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from avtcli.bench import baseline
from avtcli.bench.bench_setups import build_large_setup, build_small_setup
from avtcli.bench.data_benchmarks import make_pairs, plain_pairs
from avtcli.bench.timing import BenchConfig, Benchmark, synchronise
from avtcli.contracts import Target
from avtcli.data.resident_images import ResidentImages
from avtcli.models.siamese import SiameseModel
from avtcli.seeding import keyed_generator
from avtcli.training.optimizer import build_optimizer, set_rates
from avtcli.training.pretrain import LOG_EVERY
from avtcli.training.step import Trainer, noise_of
from avtcli.training.training_setup import TrainingSetup

READERS = 2
"""Worker processes of the baseline's DataLoader."""
EPOCH = 3
"""Batches in an epoch of the loop, at least, so that its table is drawn now and then."""

Step = Callable[[baseline.Pair], None]


def our_step(setup: TrainingSetup, losses: list[Tensor]) -> Step:
    """A step as the loop of `avt pretrain` takes it; the losses stay on the device and are read every so many steps."""
    trainer, steps = Trainer(setup, build_optimizer(setup.config, setup.net)), count()

    def step(pair: baseline.Pair) -> None:
        original, transformed, values = pair
        target = Target(values, values, setup.family, setup.size)
        loss, _ = trainer.step(next(steps), original, transformed, target, count=len(values))
        losses.append(loss.per_sample.detach().mean())
        if len(losses) % LOG_EVERY == 0:
            torch.stack(losses[-LOG_EVERY:]).tolist()

    return step


def plain_step(setup: TrainingSetup, net: SiameseModel, losses: list[float]) -> Step:
    """The baseline's step on a network with the same weights, at the same rates and with the same noise."""
    optimizer, noise, steps = baseline.build_optimizer(net), noise_of(setup), count()
    net.train()

    def step(pair: baseline.Pair) -> None:
        index = next(steps)
        set_rates(optimizer, setup.config, index, len(setup.bounds))
        losses.append(baseline.train_step(net, optimizer, pair, noise(index, len(pair[2]))))

    return step


def plain_copy(net: SiameseModel) -> SiameseModel:
    """The same weights in a network of its own, laid out as PyTorch does by itself."""
    return copy.deepcopy(net).to(memory_format=torch.contiguous_format)


def images_of(setup: TrainingSetup) -> ResidentImages:
    """The setup's images on its device."""
    return ResidentImages(setup.data.train, setup.indices, device=setup.accelerator.device, shorter=setup.config.augment.resize)


def measure_step_nin(bench: BenchConfig) -> Benchmark:
    """NIN at 32 px, the published network at width 1."""
    return _measure_step(bench, _nin(bench, width=bench.scale.width), "NIN")


def measure_step_resnet(bench: BenchConfig) -> Benchmark:
    """ResNet-18 at 32 px."""
    batch = bench.scale.batch
    setup = build_small_setup(bench, images=EPOCH * batch, batch_size=batch, backbone="timm:resnet18")
    return _measure_step(bench, setup, "ResNet-18")


def measure_step_alexnet(bench: BenchConfig) -> Benchmark:
    """AlexNet at 224 px."""
    batch = bench.scale.batch_large
    return _measure_step(bench, build_large_setup(bench, images=EPOCH * batch, batch_size=batch), "AlexNet")


def _nin(bench: BenchConfig, *, width: float) -> TrainingSetup:
    batch = bench.scale.batch
    return build_small_setup(bench, images=EPOCH * batch, batch_size=batch, width=width)


def _measure_step(bench: BenchConfig, setup: TrainingSetup, name: str) -> Benchmark:
    pair, steps, batch = next(make_pairs(setup, images_of(setup), epoch=0)), bench.scale.steps, setup.config.batch_size
    flops, net = flops_of_a_pair(setup.net, pair), plain_copy(setup.net)
    losses, plain_losses = list[Tensor](), list[float]()
    ours, plain = our_step(setup, losses), plain_step(setup, net, plain_losses)

    def figures() -> dict[str, Any]:
        read = [loss.item() for loss in losses]
        largest = max(abs(a - b) for a, b in zip(read, plain_losses, strict=True))
        return {
            "losses": read,
            "baseline_losses": plain_losses,
            "largest_relative_difference": largest / max(map(abs, plain_losses)),  # single losses may pass through 0
            "gflop_per_pair": flops / 1e9,
            **_execution(setup),
        }

    return Benchmark(
        what=f"training step of {name}, {setup.spec.channels}x{setup.size[0]}x{setup.size[1]}, batch {batch}: same weights and pairs",
        unit="pairs/s",
        ours=lambda: [ours(pair) for _ in range(steps)],
        baseline=lambda: [plain(pair) for _ in range(steps)],
        ours_count=steps * batch,
        baseline_count=steps * batch,
        figures=figures,
    )


def _execution(setup: TrainingSetup) -> dict[str, Any]:
    """How ours does its arithmetic: precision, layout of the weights, compiled or not."""
    return {
        "precision": setup.accelerator.mixed_precision.replace("no", "fp32"),
        "channels_last": setup.config.channels_last,
        "compile": setup.config.compile,
    }


def flops_of_a_pair(net: SiameseModel, pair: baseline.Pair) -> float:
    """Count the floating-point operations of convolutions and matrix products in a training step, for one pair."""
    net = copy.deepcopy(net).train()
    original, transformed, _ = (part[:2] for part in pair)
    with FlopCounterMode(display=False) as counter:
        mean, _ = net(original, transformed)
        mean.sum().backward()
    total: int = counter.get_total_flops()
    return total / len(original)


def measure_loop(bench: BenchConfig) -> Benchmark:
    """Pairs made and trained on."""
    return _measure_loop(bench, width=bench.scale.width)


def measure_loop_narrow(bench: BenchConfig) -> Benchmark:
    """The same with a quarter of the channels, where the data path shows."""
    return _measure_loop(bench, width=bench.scale.width / 4)


def _measure_loop(bench: BenchConfig, *, width: float) -> Benchmark:
    setup, device = _nin(bench, width=width), bench.device
    batch, steps = setup.config.batch_size, bench.scale.steps
    images, net = images_of(setup), plain_copy(setup.net)
    ours_data = chain.from_iterable(make_pairs(setup, images, epoch=epoch) for epoch in count())
    items = baseline.pair_batches(plain_pairs(setup, images.images), batch_size=batch, workers=READERS)
    plain_data = (_sent(pair, device) for pair in items)
    waits: dict[str, list[tuple[float, float]]] = {"ours": [], "baseline": []}

    def run(side: str, data: Iterator[baseline.Pair], step: Step) -> Callable[[], None]:
        def work() -> None:
            began, waited = time.perf_counter(), 0.0
            for _ in range(steps):
                asked = time.perf_counter()
                pair = next(data)
                waited += time.perf_counter() - asked
                step(pair)
            synchronise(device)
            waits[side].append((waited, time.perf_counter() - began))

        return work

    return Benchmark(
        what=f"pairs and step, NIN at width {width:g}, 32 px, batch {batch}, against a DataLoader of {READERS} workers",
        unit="pairs/s",
        ours=run("ours", ours_data, our_step(setup, [])),
        baseline=run("baseline", plain_data, plain_step(setup, net, [])),
        ours_count=steps * batch,
        baseline_count=steps * batch,
        figures=lambda: {"data_wait": _share(waits["ours"]), "baseline_data_wait": _share(waits["baseline"])},
    )


def _sent(pair: baseline.Pair, device: torch.device) -> baseline.Pair:
    original, transformed, target = (part.to(device) for part in pair)
    return original, transformed, target


def _share(waits: list[tuple[float, float]]) -> float:
    """The share of the time that was waited, without the round that warms up."""
    counted = waits[1:]
    return sum(waited for waited, _ in counted) / sum(seconds for _, seconds in counted)


def measure_arithmetic(bench: BenchConfig) -> Benchmark:
    """The step's arithmetic as a share of what a large matrix product reaches in the same minutes."""
    setup, steps = _nin(bench, width=bench.scale.width), bench.scale.steps
    pair = next(make_pairs(setup, images_of(setup), epoch=0))
    flops, ours = flops_of_a_pair(setup.net, pair), our_step(setup, [])
    side = bench.scale.matmul
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(setup.accelerator.mixed_precision, torch.float32)
    matrix = torch.randn(side, side, generator=keyed_generator("bench", "matmul")).to(bench.device, dtype)
    times = max(1, round(steps * setup.config.batch_size * flops / (2 * side**3) / 2))  # about as long as the step
    return Benchmark(
        what=f"arithmetic of the NIN step, against products of {side}x{side} matrices in {str(dtype).removeprefix('torch.')}",
        unit="GFLOP/s",
        ours=lambda: [ours(pair) for _ in range(steps)],
        baseline=lambda: [matrix @ matrix for _ in range(times)],
        ours_count=steps * setup.config.batch_size * flops / 1e9,
        baseline_count=times * 2 * side**3 / 1e9,
        figures=lambda: {"gflop_per_pair": flops / 1e9, **_execution(setup)},
    )
