"""Benchmark of a probe: one epoch of a linear head."""

import torch
from torch import nn

from avtcli.bench import baseline
from avtcli.bench.bench_training import build_bench_setup, resident_images
from avtcli.bench.benchmark_timing import BenchConfig, Benchmark
from avtcli.config.probe_config import ProbeConfig
from avtcli.events import ignore
from avtcli.features.feature_cache import CachedFeatures, extract
from avtcli.features.feature_reader import Feature, ForwardedImages, LabelledImages
from avtcli.probing.head import TrainedHead
from avtcli.probing.head_training import HeadTraining, RowSubset, train_heads
from avtcli.probing.heads import resolve_head
from avtcli.probing.joint_heads import HeadSpec
from avtcli.runtime.context import Context

IMAGES, BATCH, CLASSES, RATE = 256, 128, 10, 0.01


def measure_probe(config: BenchConfig) -> Benchmark:
    """One epoch of a linear head on the code."""
    setup = build_bench_setup(config, images=IMAGES, batch_size=BATCH)
    encoder, layer, labels = setup.net.encoder.eval(), setup.net.encoder.backbone.code_tap, setup.data.train.labels
    assert labels is not None
    images, labels, feature = resident_images(setup), labels[setup.indices].to(config.device), Feature(layer, "max", 4)
    data = LabelledImages(images, labels, "train", setup.size)
    forwarded = ForwardedImages(encoder, data, [feature], augment=None, samples=0, seed=0)
    (features,) = extract(forwarded, separate=False, task="features", on_event=ignore)
    on_device = {names: tensor.to(config.device) for names, tensor in features.items()}
    reader, rows = CachedFeatures(on_device, labels, device=config.device), torch.arange(len(labels))
    probe, specs = ProbeConfig(epochs=1, batch_size=BATCH), [HeadSpec(feature, RATE)]
    kind = resolve_head(probe.head)
    assert isinstance(kind, TrainedHead)
    training = HeadTraining(kind, probe, CLASSES, Context(config.device), "head")

    def train_cached() -> None:
        train_heads(RowSubset(reader, rows), RowSubset(reader, rows[:2]), specs, training)

    channels, *sides = reader.shapes[feature]
    norm = nn.BatchNorm2d(channels, affine=False) if sides else nn.BatchNorm1d(channels, affine=False)
    head = nn.Sequential(norm, nn.Flatten(), nn.LazyLinear(CLASSES)).to(config.device)
    head(torch.zeros(2, channels, *sides, device=config.device))
    optimizer = torch.optim.SGD(head.parameters(), lr=RATE, momentum=0.9, nesterov=True)
    batches = [(images.images[r], labels[r]) for r in torch.split(rows.to(config.device), BATCH)]
    return Benchmark(
        what=f"one epoch of a linear head on cached features of {len(labels)} images; baseline: forwards the images",
        unit="images/s",
        ours=train_cached,
        baseline=lambda: baseline.probe_epoch(encoder, layer, head, optimizer, batches),
        ours_count=len(labels),
        baseline_count=len(labels),
    )
