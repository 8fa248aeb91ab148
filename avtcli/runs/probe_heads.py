"""The heads of a probe on one encoder: where their features come from, which rows they learn from, what chooses their rates."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from avtcli.config import Augment, ProbeConfig
from avtcli.contracts import Size
from avtcli.core.encoder import Encoder
from avtcli.core.heads import build_head
from avtcli.core.keyed import keyed_generator
from avtcli.errors import AvtError
from avtcli.runs.events import OnEvent
from avtcli.runs.features import Feature, FeatureReader, ForwardedImages, KeptFeatures, extract, stored_bytes
from avtcli.runs.heads_training import HeadPlan, Part, train_heads
from avtcli.runs.images import Images

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


def probe_encoder(job: Job, encoder: Encoder, name: str) -> list[HeadResult]:
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
    with torch.device("meta"):  # a head that does not fit is told before the features are read
        for feature in job.wanted:
            build_head(job.config.head, train.shapes[feature], job.classes)

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
    chosen = [HeadPlan(feature, None) for feature in features]
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


def _choose_rates(job: Job, whole: Part, *, seed: int, task: str) -> tuple[list[HeadPlan], list[float | None]]:
    """For each feature the rate that is best on the held-out part after the last epoch, and its top-1 there."""
    config, features = job.config, list(whole.reader.shapes)
    order = whole.rows[torch.randperm(len(whole.rows), generator=keyed_generator(seed, "held out"))]
    held = min(max(1, round(len(order) * config.held_out)), len(order) - 2)
    plans = [HeadPlan(feature, rate) for feature in features for rate in config.rates]
    fit, held_out = Part(whole.reader, order[held:]), Part(whole.reader, order[:held])
    curves = train_heads(fit, held_out, plans, config, classes=job.classes, seed=seed, task=task, on_event=job.on_event)
    chosen: list[HeadPlan] = []
    tops: list[float | None] = []
    for feature in features:
        mine = [i for i, plan in enumerate(plans) if plan.feature == feature]
        best = max(mine, key=lambda i: curves[i][-1][0])  # the first, so the largest, of equal rates
        chosen.append(plans[best])
        tops.append(curves[best][-1][0])
    return chosen, tops
