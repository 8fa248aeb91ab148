"""The heads of a probe on one encoder: where their features come from, and what chooses their rates."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from avtcli.config.probe_config import CLOSED_HEADS
from avtcli.features.cache_storage import choose_store, fits_memory
from avtcli.features.feature_cache import KeptFeatures, Stacks, extract, stored_bytes
from avtcli.features.feature_reader import Feature, FeatureReader, ForwardedImages
from avtcli.models.encoder import Encoder
from avtcli.probing.closed_form_heads import closed_head
from avtcli.probing.fine_tuning import tuned_heads
from avtcli.probing.head_modules import LINEAR_HEADS, build_head
from avtcli.probing.head_training import Part, figures_of, train_heads
from avtcli.probing.planned_heads import HeadPlan
from avtcli.probing.probe_setup import Draw, Figures, Found, Job, split_held_out
from avtcli.runtime.devices import has_room

KEPT_BYTES = 2 * 2**30  # test features up to here are kept on the device rather than computed again at each look


@dataclass(frozen=True, kw_only=True)
class HeadResult(Figures):
    """One head's figures, in percent.

    Attributes:
        dataset: whose images.
        layer: the tap that the head reads.
        pool: how its map was reduced.
        head: its kind.
        train_images: how many images it learned from.
        shots: labelled images of each class; none where they were not counted so.
        seed: of the head's weights, its order and its draw of images.
    """

    dataset: str
    layer: str
    pool: str
    head: str
    train_images: int
    shots: int | None
    seed: int


def probe_encoder(job: Job, encoder: Encoder, name: str) -> list[HeadResult]:
    """All heads on one encoder, layer by layer, then by the number of shots and the seed.

    Args:
        job: images and settings.
        encoder: in eval mode, on the job's device; it stays as it is: to fine-tune, a copy is trained for each head.
        name: for the progress.
    """
    with torch.device("meta"):  # a head that does not fit is told before the features are read
        for shape in job.forwarded(encoder, "train", job.wanted).shapes.values():
            build_head(job.config.head, shape, job.classes)
    found = tuned_heads(job, encoder, name) if job.config.finetune else _frozen(job, encoder, name)
    results = [_result(job, *parts) for parts in found]
    return sorted(results, key=lambda result: [(f.layer, f.pool) for f in job.wanted].index((result.layer, result.pool)))


def _result(job: Job, feature: Feature, draw: Draw, figures: Figures) -> HeadResult:
    return HeadResult(
        dataset=job.pictures.dataset.name,
        layer=feature.layer,
        pool=feature.pool,
        head=job.config.head,
        train_images=len(draw.rows),
        shots=draw.shots,
        seed=draw.seed,
        **asdict(figures),
    )


def _frozen(job: Job, encoder: Encoder, name: str) -> Iterator[Found]:
    for train, test in _readers(job, encoder, name):
        for draw in job.draws:
            features = list(train.shapes)
            if job.config.head in CLOSED_HEADS:
                assert isinstance(train, KeptFeatures)
                assert isinstance(test, KeptFeatures)
                for feature in features:
                    yield (
                        feature,
                        draw,
                        closed_head(job.config, train, test, feature, rows=draw.rows, classes=job.classes, seed=draw.seed),
                    )
            else:
                task = " ".join([name, *dict.fromkeys(f.layer for f in features), draw.words]).rstrip()
                figures = _trained(job, train, test, draw, task=task)
                yield from ((feature, draw, mine) for feature, mine in zip(features, figures, strict=True))


def _readers(job: Job, encoder: Encoder, name: str) -> Iterator[tuple[FeatureReader, FeatureReader]]:
    """Where the training and the test features come from: kept, all at once or one at a time, or forwarded, all at once."""
    train, test = (job.forwarded(encoder, part, job.wanted) for part in ("train", "test"))
    copies, linear = job.config.copies, job.config.head in LINEAR_HEADS
    forwards = job.config.augments and not copies
    plain = not copies or job.config.chooses_rate  # what is held out is read as it is
    of_test = stored_bytes(test, moments=False)
    needed = stored_bytes(train, moments=linear) * (plain + copies) + of_test
    store, together = (None, True) if forwards else (choose_store(needed), _fit_together(job, train, needed))

    def read(reader: ForwardedImages, copy: int | None = None) -> list[Stacks]:
        which = "" if copy is None else f", copy {copy + 1} of {copies}"
        return extract(
            reader,
            apart=not together,
            moments=linear and reader is train,
            drawn=None if copy is None else (job.config.seed, copy),
            store=store,
            task=f"{name} features, {reader.part}{which}",
            on_event=job.on_event,
        )

    if forwards:
        if of_test <= KEPT_BYTES:
            (kept,) = read(test)
            yield train, KeptFeatures(kept.to(job.device), test.labels, device=job.device)
        else:
            yield train, test
        return
    kept_train = [*([read(train)] if plain else []), *(read(train, copy) for copy in range(copies))]
    for theirs, *mine in zip(read(test), *kept_train, strict=True):
        bytes_of = sum(kept.nbytes for kept in (theirs, *mine))
        place = torch.device("cpu") if store or not has_room(job.device, bytes_of) else job.device
        there = [kept.to(place) for kept in mine]
        yield (
            KeptFeatures(there[0], train.labels, device=job.device, copies=there[plain:]),
            KeptFeatures(theirs.to(place), test.labels, device=job.device),
        )


def _fit_together(job: Job, train: FeatureReader, needed: int) -> bool:
    """Whether all heads can be trained on the same batches, with all that a step keeps of their weights beside the features."""
    if job.config.head in CLOSED_HEADS:
        return False
    with torch.device("meta"):
        heads = [build_head(job.config.head, shape, job.classes) for shape in train.shapes.values()]
    copies = 5  # the weights, two moments, their gradients and, of linear heads, those with the normalisation in them
    weights = 4 * copies * len(job.config.peaks) * sum(p.numel() for head in heads for p in head.parameters())
    return fits_memory(needed + weights) and has_room(job.device, needed + weights)


def _trained(job: Job, train: FeatureReader, test: FeatureReader, draw: Draw, *, task: str) -> list[Figures]:
    """One head a feature: choose its rate where there is a choice, train on all the rows, look at test."""
    config, features = job.config, list(train.shapes)
    middle = config.peaks[len(config.peaks) // 2]
    plans = [HeadPlan(feature, middle if config.schedule is None else None) for feature in features]
    val_top1: list[float | None] = [None for _ in features]
    fit, held_out = split_held_out(draw.rows, train.labels, config.held_out, seed=draw.seed)
    if config.chooses_rate and len(held_out):
        parts = Part(train, fit), Part(train, held_out)
        plans, val_top1 = _choose_rates(job, *parts, seed=draw.seed, task=f"{task}: rate")
    whole = Part(train, draw.rows)
    curves = train_heads(
        whole,
        Part(test, torch.arange(len(test.labels))),
        plans,
        config,
        classes=job.classes,
        seed=draw.seed,
        task=f"{task}: head",
        on_event=job.on_event,
    )
    return [figures_of(curve, val, plan.peak) for plan, curve, val in zip(plans, curves, val_top1, strict=True)]


def _choose_rates(job: Job, fit: Part, held_out: Part, *, seed: int, task: str) -> tuple[list[HeadPlan], list[float | None]]:
    """For each feature the rate that is best on the held-out part, and its top-1 there."""
    config, features = job.config.to_choose(len(fit.rows)), list(fit.reader.shapes)
    plans = [HeadPlan(feature, rate) for feature in features for rate in config.peaks]
    curves = train_heads(
        fit,
        held_out,
        plans,
        config,
        classes=job.classes,
        seed=seed,
        task=task,
        on_event=job.on_event,
    )
    chosen: list[HeadPlan] = []
    tops: list[float | None] = []
    for feature in features:
        mine = [i for i, plan in enumerate(plans) if plan.feature == feature]
        best = max(mine, key=lambda i: curves[i][-1][0])  # the first, so the largest, of equal rates
        chosen.append(plans[best])
        tops.append(curves[best][-1][0])
    return chosen, tops
