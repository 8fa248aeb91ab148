"""Probing: what a simple classifier can read off frozen features, beside a random backbone."""

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli.config import Augment, Plugin, ProbeConfig
from avtcli.contracts import ImageData, Size, Split
from avtcli.core.encoder import Encoder
from avtcli.core.heads import LinearHead
from avtcli.core.keyed import keyed_generator, seed_of
from avtcli.core.metrics import topk_percent
from avtcli.core.schedule import cosine_rate
from avtcli.errors import AvtError
from avtcli.runs.devices import choose_device
from avtcli.runs.events import OnEvent, Progress, Saved
from avtcli.runs.features import BATCH, Feature, extract
from avtcli.runs.files import disk_errors_explained, refuse_existing, to_json, write_synced
from avtcli.runs.loaders import build_data, build_images, image_size, limited
from avtcli.runs.loading import Source, build_encoder, encoder_of
from avtcli.runs.streaming import choose_workers


@dataclass(frozen=True)
class HeadResult:
    """One head's figures, in percent.

    Attributes:
        top1: on the test split, last epoch.
        val_top1: on the held-out part of train, which chose the rate.
        top1_best_test_epoch: the best over epochs on the test split: optimistic, and it chooses nothing.
    """

    layer: str
    pool: str
    head: str
    shots: int | None
    seed: int
    top1: float
    top5: float
    val_top1: float | None
    top1_best_test_epoch: float


@dataclass(frozen=True)
class ProbeResult:
    """What `avt probe` reports: the heads on the trained backbone and, under the same protocol, on a random one."""

    run: str
    protocol: dict[str, Any]
    results: list[HeadResult]
    baseline: list[HeadResult]


@dataclass(frozen=True)
class Labelled:
    """Features with their labels, on the device of the heads."""

    features: Tensor
    labels: Tensor

    def rows(self, numbers: Tensor) -> "Labelled":
        """Some of them."""
        numbers = numbers.to(self.labels.device)
        return Labelled(self.features[numbers], self.labels[numbers])


def probe(source: Source, config: ProbeConfig, *, out: Path | None, on_event: OnEvent) -> ProbeResult:
    """Probe the layers of an encoder.

    Args:
        source: the weights.
        config: the protocol.
        out: where the result goes beside the run's probes folder; none for nowhere else.
        on_event: told what happens.

    Raises:
        AvtError: for data without labels or of other channels, or a layer that does not exist.
    """
    if out is not None:
        refuse_existing(out)
    run_config = source.config
    dataset = config.dataset or (run_config.dataset if run_config else None)
    if dataset is None:
        raise AvtError(f"{source.path} does not say what it was trained on: give --dataset.")
    data_dir = config.data_dir or (run_config.data_dir if run_config else None)
    augment = run_config.augment if run_config else Augment()
    device = torch.device(choose_device(config.device))
    trained = encoder_of(source)
    layers = _layers(trained, config)
    data = build_data(dataset, data_dir)
    size = _check(data, dataset, source, augment)
    numbers = limited(data.train, config.limit_train)
    wanted = [Feature(layer, config.pool, config.pool_size) for layer in layers]
    encoders = {"trained": trained}
    if config.baseline:
        encoders["random"] = build_encoder(source.spec, seed=config.seed).eval()
    tables: dict[str, list[HeadResult]] = {"trained": [], "random": []}
    for name, encoder in encoders.items():
        parts = _read_features(encoder.to(device), data, numbers, wanted, config, augment, size, device, name, on_event)
        for feature in wanted:
            train, test = (Labelled(features[feature].to(device), labels.to(device)) for features, labels in parts)
            label = f"{name} {feature.layer}"
            tables[name].append(_probe_one(feature, train, test, config, task=label, on_event=on_event))
    protocol = _protocol(config, dataset, data, len(numbers), source, layers)
    result = ProbeResult(str(source.path), protocol, tables["trained"], tables["random"])
    for path in _destinations(source, config, layers, out):
        with disk_errors_explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_synced(path, to_json(asdict(result)))
        on_event(Saved(path))
    return result


def _layers(encoder: Encoder, config: ProbeConfig) -> list[str]:
    if config.layers == ("all",):
        return list(encoder.layers)
    layers = list(config.layers) or [encoder.backbone.code_tap]
    encoder.check_layers(layers)
    return layers


def _check(data: ImageData, dataset: Plugin, source: Source, augment: Augment) -> Size:
    if data.test is None or not len(data.test):
        raise AvtError(f"The data set '{dataset.name}' has no test images to report on.")
    if data.train.labels is None or data.test.labels is None:
        raise AvtError(f"The data set '{dataset.name}' has no labels, and a probe learns from labels.")
    if data.channels != source.spec.channels:
        raise AvtError(
            f"The backbone of {source.path} takes images of {source.spec.channels} channel(s), those of '{dataset.name}' have "
            f"{data.channels}."
        )
    return image_size(data, augment)


def _read_features(
    encoder: Encoder,
    data: ImageData,
    numbers: Tensor,
    wanted: list[Feature],
    config: ProbeConfig,
    augment: Augment,
    size: Size,
    device: torch.device,
    name: str,
    on_event: OnEvent,
) -> list[tuple[dict[Feature, Tensor], Tensor]]:
    """Features and labels of the training and of the test images."""
    assert data.test is not None
    splits: list[tuple[str, Split, Tensor]] = [
        ("train", data.train, numbers),
        ("test", data.test, torch.arange(len(data.test))),
    ]
    parts = []
    for part, split, chosen in splits:
        assert split.labels is not None
        workers = choose_workers(config.workers, split, batch_bytes=BATCH * data.channels * size[0] * size[1])
        features = extract(
            encoder,
            build_images(split, chosen, device=device, shorter=augment.resize, workers=workers),
            wanted,
            size=size,
            samples=config.samples,
            seed=config.seed,
            task=f"{name} features, {part}",
            on_event=on_event,
        )
        parts.append((features, split.labels[chosen]))
    return parts


def _probe_one(
    feature: Feature, train: Labelled, test: Labelled, config: ProbeConfig, *, task: str, on_event: OnEvent
) -> HeadResult:
    """Choose the rate on the held-out part of train, train on all of it, look at test."""
    classes = int(torch.cat([train.labels, test.labels]).max()) + 1
    order = torch.randperm(len(train.labels), generator=keyed_generator(config.seed, "held out"))
    held = max(1, round(len(order) * config.held_out))
    fit, held_out = train.rows(order[held:]), train.rows(order[:held])
    rates = config.rates
    curves = train_heads(fit, held_out, rates, classes, config, task=f"{task}: rate", on_event=on_event)
    chosen = max(range(len(rates)), key=lambda i: curves[i][-1][0])  # the first, so the largest, of equal rates
    (curve,) = train_heads(train, test, rates[chosen : chosen + 1], classes, config, task=f"{task}: head", on_event=on_event)
    return HeadResult(
        layer=feature.layer,
        pool=feature.pool if train.features.ndim > 2 else "none",
        head=config.head,
        shots=None,
        seed=config.seed,
        top1=curve[-1][0],
        top5=curve[-1][1],
        val_top1=curves[chosen][-1][0],
        top1_best_test_epoch=max(top1 for top1, _ in curve),
    )


def train_heads(
    train: Labelled,
    test: Labelled,
    rates: tuple[float, ...],
    classes: int,
    config: ProbeConfig,
    *,
    task: str,
    on_event: OnEvent,
) -> list[list[tuple[float, float]]]:
    """Train one head a rate, all on the same batches.

    Args:
        train: to learn from.
        test: to measure on after each epoch.
        rates: peak learning rates; each falls to 0 along half a cosine.
        classes: the number of classes.
        config: epochs, batch size, weight decay and seed.
        task: its name in the progress.
        on_event: told how far it is.

    Returns:
        For each rate, (top-1, top-5) in percent after each epoch.
    """
    device = train.features.device
    heads = []
    for _ in rates:  # all start from the same weights
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(config.seed, "head"))
            heads.append(LinearHead(tuple(train.features.shape[1:]), classes).to(device))
    groups = [{"params": list(head.parameters()), "lr": rate} for head, rate in zip(heads, rates, strict=True)]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)
    count = len(train.labels)
    batches = [(first, min(first + config.batch_size, count)) for first in range(0, count, config.batch_size)]
    if len(batches) > 1 and batches[-1][1] - batches[-1][0] == 1:
        batches.pop()  # BatchNorm needs two
    curves: list[list[tuple[float, float]]] = [[] for _ in rates]
    for epoch in range(config.epochs):
        order = torch.randperm(count, generator=keyed_generator(config.seed, "order", epoch)).to(device)
        for index, (first, last) in enumerate(batches):
            progress = (epoch + index / len(batches)) / config.epochs
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = cosine_rate(progress, peak=rate, warmup=0)
            features, labels = train.features[order[first:last]], train.labels[order[first:last]]
            torch.stack([functional.cross_entropy(head(features), labels) for head in heads]).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        for head, curve in zip(heads, curves, strict=True):
            curve.append(score(head, test))
        best = max(curve[-1][0] for curve in curves)
        on_event(Progress(task, epoch + 1, config.epochs, "epochs", f"{best:.2f} %"))
    return curves


@torch.no_grad()
def score(head: nn.Module, test: Labelled) -> tuple[float, float]:
    """Top-1 and top-5 in percent of a head in eval mode."""
    head.eval()
    logits = torch.cat([head(part) for part in torch.split(test.features, 2000)])
    head.train()
    return topk_percent(logits, test.labels, 1), topk_percent(logits, test.labels, min(5, logits.shape[1]))


def _protocol(
    config: ProbeConfig, dataset: Plugin, data: ImageData, train_count: int, source: Source, layers: list[str]
) -> dict[str, Any]:
    """Everything needed to compare the numbers."""
    assert data.test is not None
    return {
        "features": "encoder frozen, eval mode, images as they are (middle crop), read once",
        "dataset": dataset.name,
        "train_images": train_count,
        "test_images": len(data.test),
        "layers": layers,
        "pool": config.pool,
        "pool_size": None if config.pool == "none" else config.pool_size,
        "samples_of_the_code": config.samples,
        "augmentation": "none",
        "head": "BatchNorm without affine, linear",
        "optimizer": f"SGD, momentum 0.9, Nesterov, weight decay {config.weight_decay:g}",
        "schedule": "cosine to 0",
        "rates": list(config.rates),
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "chosen": f"the rate, on {config.held_out:.0%} of train held out; the head is then trained on all of train",
        "reported": "test split, last epoch",
        "top1_best_test_epoch": "the best epoch on test: optimistic, chooses nothing",
        "baseline": "the same protocol on a randomly initialised backbone" if config.baseline else None,
        "seed": config.seed,
        "pretraining_steps": source.about.get("step"),
    }


def _destinations(source: Source, config: ProbeConfig, layers: list[str], out: Path | None) -> list[Path]:
    paths = [] if out is None else [out]
    if source.run is not None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        which = "all" if config.layers == ("all",) else "-".join(layers)
        paths.append(source.run / "probes" / f"{stamp}-{which}-{config.pool}-{config.head}.json")
    return paths
