"""Heads on one encoder: on features that are cached or forwarded while it is frozen, or fine-tuned together with it."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, product

import torch
from torch import Tensor

from avtcli.features.cache_storage import CPU, choose_storage, fits_memory
from avtcli.features.feature_cache import CachedFeatures, cache_bytes, extract
from avtcli.features.feature_reader import Feature, FeatureReader, Features, ForwardedImages
from avtcli.features.finite_check import NotFiniteError
from avtcli.models.encoder import Encoder
from avtcli.probing.head import ClosedFormHead, HeadData, HeadFigures, TrainedHead
from avtcli.probing.head_training import Curve, HeadTraining, RowSubset, choose_and_train, train_heads
from avtcli.probing.heads import resolve_head
from avtcli.probing.joint_heads import HeadSpec
from avtcli.probing.probe_setup import HeadResult, ProbeSetup, Subset, split_held_out
from avtcli.runtime.devices import has_room
from avtcli.runtime.processes import map_shared

CACHED_TEST_BYTES = 2 * 2**30  # larger test features are computed each epoch where those of training images are


def frozen_heads(setup: ProbeSetup, encoder: Encoder, name: str) -> Iterator[HeadResult]:
    """One head for each feature and subset, on an encoder in eval mode; `name` is for the progress.

    Several processes divide the subsets, as heads on all features of one share their batches.
    """
    for train, test in _readers(setup, encoder, name):

        def fit(subset: Subset, train: FeatureReader = train, test: FeatureReader = test) -> list[HeadResult]:
            if isinstance(setup.head, ClosedFormHead):
                figures = [setup.head.fit(_head_data(setup, train, test, feature, subset)) for feature in train.shapes]
            else:
                task = " ".join([name, *dict.fromkeys(f.layer for f in train.shapes), subset.label]).rstrip()
                figures = _train(setup, train, test, subset, task=task)
            return [setup.result(feature, subset, own) for feature, own in zip(train.shapes, figures, strict=True)]

        yield from chain(*map_shared(setup.context.group, fit, setup.subsets))


def _head_data(setup: ProbeSetup, train: FeatureReader, test: FeatureReader, feature: Feature, subset: Subset) -> HeadData:
    assert isinstance(train, CachedFeatures)
    assert isinstance(test, CachedFeatures)
    flat = [reader.features[feature].movedim(1, -1).flatten(1) for reader in (train, test)]  # as in memory, without a copy
    rows = split_held_out(subset.rows, train.labels, seed=subset.seed)
    return HeadData(flat[0], train.labels, flat[1], test.labels, subset.rows, *rows, setup.classes)


def _readers(setup: ProbeSetup, encoder: Encoder, name: str) -> Iterator[tuple[FeatureReader, FeatureReader]]:
    """Readers of training and test features: all features together, or where memory is short one after the other."""
    train, test = (setup.reader(encoder, data, setup.wanted) for data in (setup.train, setup.test))
    copies, device = setup.config.copies, setup.context.device
    if setup.config.augments and not copies:
        if cache_bytes(test) <= CACHED_TEST_BYTES:
            task, on_event, group = f"{name} features, test", setup.context.on_event, setup.context.group
            features = extract(test, storage=device, task=task, on_event=on_event, group=group)
            yield train, CachedFeatures(features, test.labels, device=device)
        else:
            yield train, test
        return
    plain = not copies or setup.config.searches_lr  # held-out images are not augmented
    needed = cache_bytes(train) * (plain + copies) + cache_bytes(test)
    storage = choose_storage(needed, device=device)

    def read(reader: ForwardedImages, copy: int | None = None) -> Features:
        suffix = "" if copy is None else f", copy {copy + 1} of {copies}"
        task, key = f"{name} features, {reader.data.part}{suffix}", None if copy is None else (setup.config.seed, copy)
        on_event, group = setup.context.on_event, setup.context.group
        return extract(reader, epoch_key=key, storage=storage, task=task, on_event=on_event, group=group)

    cached = [*([read(train)] if plain else []), *(read(train, copy) for copy in range(copies)), read(test)]
    together = _heads_fit_together(setup, train, needed)
    for wanted in [[*train.shapes]] if together else [[feature] for feature in train.shapes]:
        placed = [{feature: features[feature] for feature in wanted} for features in cached]
        total = sum(own.nbytes for features in placed for own in features.values())
        if storage == CPU and has_room(device, total):
            placed = [{feature: own.to(device) for feature, own in features.items()} for features in placed]
        yield (
            CachedFeatures(placed[0], train.labels, device=device, copies=placed[plain:-1]),
            CachedFeatures(placed[-1], test.labels, device=device),
        )


def _heads_fit_together(setup: ProbeSetup, train: FeatureReader, needed: int) -> bool:
    if not isinstance(setup.head, TrainedHead):
        return False
    with torch.device("meta"):
        heads = [setup.head.build(f.layer, shape, setup.classes) for f, shape in train.shapes.items()]
    tensors = 5  # weights, two moments, gradients, and the joint weights of linear heads
    weights = 4 * tensors * len(setup.config.learning_rates) * sum(p.numel() for head in heads for p in head.parameters())
    device = setup.context.device
    return has_room(device, needed + weights) and (device.type == "cuda" or fits_memory(needed + weights))


def _train(setup: ProbeSetup, train: FeatureReader, test: FeatureReader, subset: Subset, *, task: str) -> list[HeadFigures]:

    def run(training: HeadTraining, specs: Sequence[HeadSpec], rows: Tensor, held_out: Tensor | None) -> list[Curve]:
        if held_out is None:
            return train_heads(RowSubset(train, rows), RowSubset(test, torch.arange(len(test.labels))), specs, training)
        search = replace(training, config=setup.config.for_lr_search(len(rows)))
        return train_heads(RowSubset(train, rows), RowSubset(train, held_out), specs, search)

    return choose_and_train(setup, list(train.shapes), subset, run, task=task)


def tuned_heads(setup: ProbeSetup, encoder: Encoder, name: str) -> Iterator[HeadResult]:
    """One head for each feature and subset, each trained with its own copy of the encoder; `name` is for the progress.

    Several processes divide them.
    """

    def tune(case: tuple[Feature, Subset]) -> HeadResult:
        feature, subset = case
        task = " ".join([name, feature.layer, subset.label]).rstrip()
        figures, _ = _tune_best(setup, encoder, feature, subset, task=task)
        return setup.result(feature, subset, figures)

    yield from map_shared(setup.context.group, tune, [*product(setup.wanted, setup.subsets)])


def supervised_encoder(setup: ProbeSetup, encoder: Encoder) -> Encoder:
    """A copy of an encoder, trained with the labels of all training images under a linear head on its last layer."""
    config = setup.config.to_finetune()
    everything = Subset(torch.arange(len(setup.train.labels)), None, config.seed)
    last = Feature(list(encoder.backbone.taps)[-1], "avg", 1)
    setup = replace(setup, config=config, head=resolve_head(config.head))
    return _tune_best(setup, encoder, last, everything, task="supervised")[1].eval()


def _tune_best(
    setup: ProbeSetup, encoder: Encoder, feature: Feature, subset: Subset, *, task: str
) -> tuple[HeadFigures, Encoder]:
    """Fine-tune without code samples, at the rate that is best on held-out images; return the tuned encoder too."""
    tuned = encoder

    def run(training: HeadTraining, specs: Sequence[HeadSpec], rows: Tensor, held_out: Tensor | None) -> list[Curve]:
        nonlocal tuned
        curves: list[Curve] = []
        for spec in specs:
            tuned = copy.deepcopy(encoder)
            tuned.log_var = None
            train, test = (setup.reader(tuned, data, [feature]) for data in (setup.train, setup.test))
            target = RowSubset(test, torch.arange(len(test.labels))) if held_out is None else RowSubset(train, held_out)
            own = training if held_out is None else replace(training, task=f"{training.task} {spec.peak:g}")
            try:
                curves += train_heads(RowSubset(train, rows), target, [spec], own, tuned=tuned)
            except NotFiniteError:
                if held_out is None:
                    raise
                curves.append([(0.0, 0.0)])  # a rate at which the training diverges is not chosen
            tuned.log_var = copy.deepcopy(encoder.log_var)
        return curves

    (figures,) = choose_and_train(setup, [feature], subset, run, task=task)
    return figures, tuned
