"""Probing: what a simple classifier can read off frozen features, beside a random backbone."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avtcli.config import Augment, Plugin, ProbeConfig
from avtcli.contracts import ImageData, Size, Split
from avtcli.core.encoder import Encoder
from avtcli.core.keyed import keyed_generator
from avtcli.errors import AvtError
from avtcli.runs.devices import choose_device
from avtcli.runs.events import OnEvent, Saved, Started
from avtcli.runs.features import BATCH, Feature, FeatureReader, ForwardedImages, KeptFeatures, extract, stored_bytes
from avtcli.runs.files import disk_errors_explained, refuse_existing, to_json, write_synced
from avtcli.runs.heads_training import Part, Plan, train_heads
from avtcli.runs.images import Images
from avtcli.runs.loaders import build_data, build_images, image_size, limited
from avtcli.runs.loading import Source, build_encoder, encoder_of
from avtcli.runs.probe_protocol import describe_probe, describe_start
from avtcli.runs.streaming import choose_workers

KEPT_BYTES = 2 * 2**30  # test features up to here are kept on the device rather than computed again each epoch


@dataclass(frozen=True)
class HeadResult:
    """One head's figures, in percent.

    Attributes:
        shots: labelled images of each class; none for all that there are.
        top1: on the test split, last epoch.
        val_top1: on the held-out part of train, which chose the rate; none where nothing was chosen.
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
class Job:
    """Everything a probe is made of beside the encoders."""

    config: ProbeConfig
    images: dict[str, Images]
    labels: dict[str, Tensor]
    wanted: list[Feature]
    augment: Augment
    size: Size
    device: torch.device
    classes: int
    on_event: OnEvent


def probe(source: Source, config: ProbeConfig, *, out: Path | None, on_event: OnEvent) -> ProbeResult:
    """Probe the layers of an encoder.

    Args:
        source: the weights.
        config: the protocol.
        out: where the result goes beside the run's probes folder; none for nowhere else.
        on_event: told what happens.

    Raises:
        AvtError: for data without labels or of other channels, a layer that does not exist, or a head that does not fit it.
    """
    if out is not None:
        refuse_existing(out)
    dataset = config.dataset or (source.config.dataset if source.config else None)
    if dataset is None:
        raise AvtError(f"{source.path} does not say what it was trained on: give --dataset.")
    trained = encoder_of(source)
    layers = _layers(trained, config)
    job = _prepare(source, config, dataset, layers, on_event=on_event)
    protocol = describe_probe(config, job.augment, dataset, source, layers=layers, counts=_counts(job))
    on_event(Started(describe_start(protocol, device=job.device.type)))
    encoders = {"trained": trained}
    if config.baseline:
        encoders["random"] = build_encoder(source.spec, seed=config.seed).eval()
    tables = {name: _probe_encoder(job, encoder.to(job.device), name) for name, encoder in encoders.items()}
    result = ProbeResult(str(source.path), protocol, tables["trained"], tables.get("random", []))
    for path in _destinations(source, config, layers, out):
        with disk_errors_explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_synced(path, to_json(asdict(result)))
        on_event(Saved(path))
    return result


def _layers(encoder: Encoder, config: ProbeConfig) -> list[str]:
    if config.layers == ("all",):
        return list(encoder.layers)
    layers = list(dict.fromkeys(config.layers)) or [encoder.backbone.code_tap]
    encoder.check_layers(layers)
    return layers


def _prepare(source: Source, config: ProbeConfig, dataset: Plugin, layers: list[str], *, on_event: OnEvent) -> Job:
    run_config = source.config
    data = build_data(dataset, config.data_dir or (run_config.data_dir if run_config else None))
    test = _check(data, dataset, source)
    augment = config.augment or (run_config.augment if run_config else Augment())
    size = image_size(data, augment)
    device = torch.device(choose_device(config.device))
    chosen = {"train": (data.train, limited(data.train, config.limit_train)), "test": (test, torch.arange(len(test)))}
    images, labels = {}, {}
    for part, (split, numbers) in chosen.items():
        largest = max(config.batch_size + 1, BATCH) * data.channels * size[0] * size[1]
        workers = choose_workers(config.workers, split, batch_bytes=largest)
        images[part] = build_images(split, numbers, device=device, shorter=augment.resize, workers=workers)
        assert split.labels is not None
        labels[part] = split.labels[numbers].to(device)
    return Job(
        config=config,
        images=images,
        labels=labels,
        wanted=[Feature(layer, config.pooling, config.side_of(layer)) for layer in layers],
        augment=augment,
        size=size,
        device=device,
        classes=max(len(data.classes or ()), 1 + int(torch.cat([*labels.values()]).max())),
        on_event=on_event,
    )


def _check(data: ImageData, dataset: Plugin, source: Source) -> Split:
    """The test split of labelled images that the backbone takes."""
    if data.test is None or not len(data.test):
        raise AvtError(f"The data set '{dataset.name}' has no test images to report on.")
    if data.train.labels is None or data.test.labels is None:
        raise AvtError(f"The data set '{dataset.name}' has no labels, and a probe learns from labels.")
    if data.channels != source.spec.channels:
        raise AvtError(
            f"The backbone of {source.path} takes images of {source.spec.channels} channel(s), those of '{dataset.name}' have "
            f"{data.channels}."
        )
    return data.test


def _counts(job: Job) -> dict[str, int]:
    return {"train_images": len(job.images["train"]), "test_images": len(job.images["test"]), "classes": job.classes}


def _probe_encoder(job: Job, encoder: Encoder, name: str) -> list[HeadResult]:
    """All heads on one encoder, layer by layer, then by the number of shots and the seed."""
    config = job.config
    results = [
        result
        for train, test in _readers(job, encoder, name)
        for shots in config.shots or (None,)
        for seed in range(config.seed, config.seed + config.seeds)
        for result in _probe_features(job, train, test, shots=shots, seed=seed, name=name)
    ]
    layers = [feature.layer for feature in job.wanted]
    return sorted(results, key=lambda result: layers.index(result.layer))


def _readers(job: Job, encoder: Encoder, name: str) -> Iterator[tuple[FeatureReader, FeatureReader]]:
    """Where the training and the test features come from: kept, one layer at a time, or all at once from forwarded images."""
    forwarded = {
        part: ForwardedImages(
            encoder,
            job.images[part],
            job.labels[part],
            job.wanted,
            part=part,
            augment=job.augment,
            size=job.size,
            samples=job.config.samples,
            seed=job.config.seed,
        )
        for part in ("train", "test")
    }
    train, test = forwarded["train"], forwarded["test"]

    def read(reader: ForwardedImages) -> dict[Feature, Tensor]:
        return extract(reader, task=f"{name} features, {reader.part}", on_event=job.on_event)

    if job.config.augmented:
        small = stored_bytes(test) <= KEPT_BYTES
        yield train, KeptFeatures(read(test), test.labels, device=job.device) if small else test
        return
    kept_train, kept_test = read(train), read(test)
    for feature in job.wanted:
        yield (
            KeptFeatures({feature: kept_train[feature]}, train.labels, device=job.device),
            KeptFeatures({feature: kept_test[feature]}, test.labels, device=job.device),
        )


def _probe_features(
    job: Job, train: FeatureReader, test: FeatureReader, *, shots: int | None, seed: int, name: str
) -> list[HeadResult]:
    """One head a feature: choose its rate where there is no schedule, train on all the rows, look at test."""
    config, features = job.config, list(train.shapes)
    rows = shot_rows(train.labels.cpu(), shots, seed=seed)
    about = [name, *(f.layer for f in features), *([f"{shots} shots"] if shots else []), *([f"seed {seed}"] * (seed > 0))]
    task = " ".join(about)
    chosen = [Plan(feature, None) for feature in features]
    val_top1: list[float | None] = [None for _ in features]
    if config.schedule is None:
        chosen, val_top1 = _choose_rates(job, Part(train, rows), seed=seed, task=f"{task}: rate")
    curves = train_heads(
        Part(train, rows),
        Part(test, torch.arange(len(test.labels))),
        chosen,
        config,
        classes=job.classes,
        seed=seed,
        task=f"{task}: head",
        on_event=job.on_event,
    )
    return [
        HeadResult(
            layer=feature.layer,
            pool=feature.pool if len(train.shapes[feature]) > 1 else "none",
            head=config.head,
            shots=shots,
            seed=seed,
            top1=curve[-1][0],
            top5=curve[-1][1],
            val_top1=val,
            top1_best_test_epoch=max(top1 for top1, _ in curve),
        )
        for feature, curve, val in zip(features, curves, val_top1, strict=True)
    ]


def shot_rows(labels: Tensor, shots: int | None, *, seed: int) -> Tensor:
    """The rows to train on, sorted: all, or a draw by the seed of so many a class, the fewer among the more.

    Raises:
        AvtError: if a class has too few images, or there are too few in all.
    """
    rows = torch.arange(len(labels))
    if shots is not None:
        order = torch.randperm(len(labels), generator=keyed_generator(seed, "shots"))
        by_class = {label: order[labels[order] == label] for label in set(labels.tolist())}
        scarce = min(by_class, key=lambda label: len(by_class[label]))
        if len(by_class[scarce]) < shots:
            raise AvtError(
                f"--shots {shots} asks for {shots} training images of each class, class {scarce} has {len(by_class[scarce])}."
            )
        rows = torch.cat([mine[:shots] for mine in by_class.values()]).sort().values
    if len(rows) < 4:
        raise AvtError(f"{len(rows)} labelled images are too few to train a head on: 4 is the least. Give more --shots.")
    return rows


def _choose_rates(job: Job, whole: Part, *, seed: int, task: str) -> tuple[list[Plan], list[float | None]]:
    """For each feature the rate that is best on the held-out part after the last epoch, and its top-1 there."""
    config, features = job.config, list(whole.reader.shapes)
    order = whole.rows[torch.randperm(len(whole.rows), generator=keyed_generator(seed, "held out"))]
    held = min(max(1, round(len(order) * config.held_out)), len(order) - 2)
    plans = [Plan(feature, rate) for feature in features for rate in config.rates]
    fit, held_out = Part(whole.reader, order[held:]), Part(whole.reader, order[:held])
    curves = train_heads(fit, held_out, plans, config, classes=job.classes, seed=seed, task=task, on_event=job.on_event)
    chosen: list[Plan] = []
    tops: list[float | None] = []
    for feature in features:
        mine = [i for i, plan in enumerate(plans) if plan.feature == feature]
        best = max(mine, key=lambda i: curves[i][-1][0])  # the first, so the largest, of equal rates
        chosen.append(plans[best])
        tops.append(curves[best][-1][0])
    return chosen, tops


def _destinations(source: Source, config: ProbeConfig, layers: Sequence[str], out: Path | None) -> list[Path]:
    paths = [] if out is None else [out]
    if source.run is not None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        which = "all" if config.layers == ("all",) else "-".join(layers)
        paths.append(source.run / "probes" / f"{stamp}-{which}-{config.pooling}-{config.head}.json")
    return paths
