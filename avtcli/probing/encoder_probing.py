"""The heads of a probe on one encoder: where their features come from, and what chooses their rates."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from avtcli.config.probe_config import CLOSED_FORM_HEADS
from avtcli.features.cache_storage import choose_storage, fits_memory
from avtcli.features.feature_cache import CachedFeatures, Stacks, extract, stored_bytes
from avtcli.features.feature_reader import Feature, FeatureReader, ForwardedImages
from avtcli.models.encoder import Encoder
from avtcli.probing.closed_form_heads import closed_form_head
from avtcli.probing.fine_tuning import tuned_heads
from avtcli.probing.head_modules import LINEAR_HEADS, build_head
from avtcli.probing.head_training import Part, figures_of, train_heads
from avtcli.probing.planned_heads import HeadPlan
from avtcli.probing.probe_setup import Figures, Found, ProbeSetup, Subset, split_held_out
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
        seed: of the head's weights, its order and its subset of images.
    """

    dataset: str
    layer: str
    pool: str
    head: str
    train_images: int
    shots: int | None
    seed: int


def probe_encoder(setup: ProbeSetup, encoder: Encoder, name: str) -> list[HeadResult]:
    """All heads on one encoder, layer by layer, then by the number of shots and the seed.

    Args:
        setup: images and settings.
        encoder: in eval mode, on the setup's device; it stays as it is: to fine-tune, a copy is trained for each head.
        name: for the progress.
    """
    with torch.device("meta"):  # a head that does not fit is told before the features are read
        for shape in setup.forwarded(encoder, "train", setup.wanted).shapes.values():
            build_head(setup.config.head, shape, setup.classes)
    found = tuned_heads(setup, encoder, name) if setup.config.finetune else _frozen(setup, encoder, name)
    results = [_result(setup, *parts) for parts in found]
    return sorted(results, key=lambda result: [(f.layer, f.pool) for f in setup.wanted].index((result.layer, result.pool)))


def _result(setup: ProbeSetup, feature: Feature, subset: Subset, figures: Figures) -> HeadResult:
    return HeadResult(
        dataset=setup.prepared.dataset.name,
        layer=feature.layer,
        pool=feature.pool,
        head=setup.config.head,
        train_images=len(subset.rows),
        shots=subset.shots,
        seed=subset.seed,
        **asdict(figures),
    )


def _frozen(setup: ProbeSetup, encoder: Encoder, name: str) -> Iterator[Found]:
    for train, test in _readers(setup, encoder, name):
        for subset in setup.subsets:
            features = list(train.shapes)
            if setup.config.head in CLOSED_FORM_HEADS:
                assert isinstance(train, CachedFeatures)
                assert isinstance(test, CachedFeatures)
                for feature in features:
                    yield (
                        feature,
                        subset,
                        closed_form_head(
                            setup.config, train, test, feature, rows=subset.rows, classes=setup.classes, seed=subset.seed
                        ),
                    )
            else:
                task = " ".join([name, *dict.fromkeys(f.layer for f in features), subset.words]).rstrip()
                figures = _trained(setup, train, test, subset, task=task)
                yield from ((feature, subset, mine) for feature, mine in zip(features, figures, strict=True))


def _readers(setup: ProbeSetup, encoder: Encoder, name: str) -> Iterator[tuple[FeatureReader, FeatureReader]]:
    """Where the training and the test features come from: kept, all at once or one at a time, or forwarded, all at once."""
    train, test = (setup.forwarded(encoder, part, setup.wanted) for part in ("train", "test"))
    copies, linear = setup.config.copies, setup.config.head in LINEAR_HEADS
    forwards = setup.config.augments and not copies
    plain = not copies or setup.config.searches_lr  # what is held out is read as it is
    of_test = stored_bytes(test, moments=False)
    needed = stored_bytes(train, moments=linear) * (plain + copies) + of_test
    store, together = (None, True) if forwards else (choose_storage(needed), _fit_together(setup, train, needed))

    def read(reader: ForwardedImages, copy: int | None = None) -> list[Stacks]:
        which = "" if copy is None else f", copy {copy + 1} of {copies}"
        return extract(
            reader,
            apart=not together,
            moments=linear and reader is train,
            drawn=None if copy is None else (setup.config.seed, copy),
            store=store,
            task=f"{name} features, {reader.part}{which}",
            on_event=setup.on_event,
        )

    if forwards:
        if of_test <= KEPT_BYTES:
            (kept,) = read(test)
            yield train, CachedFeatures(kept.to(setup.device), test.labels, device=setup.device)
        else:
            yield train, test
        return
    kept_train = [*([read(train)] if plain else []), *(read(train, copy) for copy in range(copies))]
    for theirs, *mine in zip(read(test), *kept_train, strict=True):
        bytes_of = sum(kept.nbytes for kept in (theirs, *mine))
        place = torch.device("cpu") if store or not has_room(setup.device, bytes_of) else setup.device
        there = [kept.to(place) for kept in mine]
        yield (
            CachedFeatures(there[0], train.labels, device=setup.device, copies=there[plain:]),
            CachedFeatures(theirs.to(place), test.labels, device=setup.device),
        )


def _fit_together(setup: ProbeSetup, train: FeatureReader, needed: int) -> bool:
    """Whether all heads can be trained on the same batches, with all that a step keeps of their weights beside the features."""
    if setup.config.head in CLOSED_FORM_HEADS:
        return False
    with torch.device("meta"):
        heads = [build_head(setup.config.head, shape, setup.classes) for shape in train.shapes.values()]
    copies = 5  # the weights, two moments, their gradients and, of linear heads, those with the normalisation in them
    weights = 4 * copies * len(setup.config.learning_rates) * sum(p.numel() for head in heads for p in head.parameters())
    return fits_memory(needed + weights) and has_room(setup.device, needed + weights)


def _trained(setup: ProbeSetup, train: FeatureReader, test: FeatureReader, subset: Subset, *, task: str) -> list[Figures]:
    """One head a feature: choose its rate where there is a choice, train on all the rows, look at test."""
    config, features = setup.config, list(train.shapes)
    middle = config.learning_rates[len(config.learning_rates) // 2]
    plans = [HeadPlan(feature, middle if config.schedule is None else None) for feature in features]
    val_top1: list[float | None] = [None for _ in features]
    fit, held_out = split_held_out(subset.rows, train.labels, config.held_out, seed=subset.seed)
    if config.searches_lr and len(held_out):
        parts = Part(train, fit), Part(train, held_out)
        plans, val_top1 = _choose_rates(setup, *parts, seed=subset.seed, task=f"{task}: rate")
    whole = Part(train, subset.rows)
    curves = train_heads(
        whole,
        Part(test, torch.arange(len(test.labels))),
        plans,
        config,
        classes=setup.classes,
        seed=subset.seed,
        task=f"{task}: head",
        on_event=setup.on_event,
    )
    return [figures_of(curve, val, plan.peak) for plan, curve, val in zip(plans, curves, val_top1, strict=True)]


def _choose_rates(
    setup: ProbeSetup, fit: Part, held_out: Part, *, seed: int, task: str
) -> tuple[list[HeadPlan], list[float | None]]:
    """For each feature the rate that is best on the held-out part, and its top-1 there."""
    config, features = setup.config.for_lr_search(len(fit.rows)), list(fit.reader.shapes)
    plans = [HeadPlan(feature, rate) for feature in features for rate in config.learning_rates]
    curves = train_heads(
        fit,
        held_out,
        plans,
        config,
        classes=setup.classes,
        seed=seed,
        task=task,
        on_event=setup.on_event,
    )
    chosen: list[HeadPlan] = []
    tops: list[float | None] = []
    for feature in features:
        mine = [i for i, plan in enumerate(plans) if plan.feature == feature]
        best = max(mine, key=lambda i: curves[i][-1][0])  # the first, so the largest, of equal rates
        chosen.append(plans[best])
        tops.append(curves[best][-1][0])
    return chosen, tops
