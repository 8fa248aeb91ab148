"""Measured: what stands around training: a probe's epoch, a checkpoint, the start of the command."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from avtcli.bench import baseline
from avtcli.bench.bench_setups import build_small_setup
from avtcli.bench.data_benchmarks import make_pairs
from avtcli.bench.step_benchmarks import images_of, our_step
from avtcli.bench.timing import BenchConfig, Benchmark, seconds_of
from avtcli.config.probe_config import ProbeConfig
from avtcli.events import ignore
from avtcli.features.feature_cache import CachedFeatures, Stacks, extract
from avtcli.features.feature_reader import Feature, ForwardedImages, LabelledImages
from avtcli.probing.head import TrainedHead
from avtcli.probing.head_training import HeadTraining, RowSubset, train_heads
from avtcli.probing.heads import resolve_head
from avtcli.probing.joint_heads import HeadSpec
from avtcli.runtime.context import Context
from avtcli.seeding import keyed_generator
from avtcli.storage.checkpoints import save_checkpoint
from avtcli.storage.files import disk_errors_explained
from avtcli.training.optimizer import make_optimizer

PROBE_BATCH = 128
RATE = 0.01
TENSORS = 20
"""Tensors in the checkpoint."""
EMPTY_APP = "import typer; app = typer.Typer(); app.callback()(lambda: None); app.command('a')(lambda: None); app()"


def measure_probe(bench: BenchConfig) -> Benchmark:
    """An epoch of a linear head on NIN's code: on features that were kept, or forwarding every image again."""
    setup = build_small_setup(bench, images=bench.scale.probed, batch_size=PROBE_BATCH, width=bench.scale.width)
    encoder, device, layer = setup.net.encoder.eval(), bench.device, setup.net.encoder.backbone.code_tap
    assert setup.data.train.labels is not None
    images = images_of(setup)
    labels = setup.data.train.labels[setup.indices].to(device)
    rows = torch.arange(len(labels))
    batches = [(images.images[r.to(device)], labels[r.to(device)]) for r in torch.split(rows, PROBE_BATCH)]
    feature = Feature(layer, "max", 4)
    data = LabelledImages(images, labels, "train", setup.size)
    forwarded = ForwardedImages(encoder, data, [feature], augment=None, samples=0, seed=0)

    def read() -> Stacks:
        (cached,) = extract(forwarded, separate=False, task="features", on_event=ignore)
        return {names: tensor.to(device) for names, tensor in cached.items()}

    reader = CachedFeatures(read(), labels, device=device)
    config = ProbeConfig(epochs=1, batch_size=PROBE_BATCH)
    kind = resolve_head(config.head)
    assert isinstance(kind, TrainedHead)
    head = kind.build(layer, reader.shapes[feature], 10).to(device)
    optimizer = make_optimizer([{"params": list(head.parameters())}], config.optimizer)
    optimizer.param_groups[0]["lr"] = RATE
    extraction = seconds_of(read, device)

    def ours() -> None:
        training = HeadTraining(kind, config, 10, Context(device), "head")
        train_heads(RowSubset(reader, rows), RowSubset(reader, rows[:2]), [HeadSpec(feature, RATE)], training)

    return Benchmark(
        what=f"an epoch of a linear head on {len(labels)} images' features, kept, against forwarding the images again",
        unit="images/s",
        ours=ours,
        baseline=lambda: baseline.probe_epoch(encoder, layer, head, optimizer, batches),
        ours_count=len(labels),
        baseline_count=len(labels),
        figures=lambda: {"extraction_seconds": extraction},
    )


def measure_checkpoint(bench: BenchConfig) -> Benchmark:
    """How long training stands still for a checkpoint, against one training step of NIN."""
    scale = bench.scale
    setup = build_small_setup(bench, images=scale.batch, batch_size=scale.batch, width=scale.width)
    pair, step = next(make_pairs(setup, images_of(setup), epoch=0)), our_step(setup, [])
    numbers = scale.checkpoint_mb * 1_000_000 // 4 // TENSORS
    generator = keyed_generator("bench", "checkpoint", device=bench.device)
    tensors = {str(i): torch.randn(numbers, generator=generator, device=bench.device) for i in range(TENSORS)}
    model, state = dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])
    steps, saved = count(), list[float]()

    def save() -> None:
        with _folder_here() as folder:
            saved.append(
                seconds_of(lambda: save_checkpoint(folder, next(steps), model=model, state=state, about={}), bench.device)
            )

    return Benchmark(
        what=f"a checkpoint of {scale.checkpoint_mb} MB, hashed and on disk, against one NIN step of {scale.batch} pairs",
        unit="times/s",
        ours=save,
        baseline=lambda: step(pair),
        ours_count=1,
        baseline_count=1,
        figures=lambda: {"stall_seconds": saved[1:]},
    )


@contextmanager
def _folder_here() -> Iterator[Path]:
    """A folder on the disk that runs are written to, gone afterwards."""
    with disk_errors_explained(Path.cwd()), TemporaryDirectory(prefix=".avt-bench-", dir=Path.cwd()) as folder:
        yield Path(folder)


def measure_start(bench: BenchConfig) -> Benchmark:
    """`avt --help`, against a Typer app with nothing in it."""
    commands = ([sys.executable, "-m", "avtcli", "--help"], [sys.executable, "-c", EMPTY_APP, "--help"])
    ours, plain = (_started(command) for command in commands)
    return Benchmark(
        what="`avt --help`, against the help of an empty Typer app",
        unit="starts/s",
        ours=ours,
        baseline=plain,
        ours_count=1,
        baseline_count=1,
    )


def _started(command: list[str]) -> Any:
    return lambda: subprocess.run(command, check=True, capture_output=True)
