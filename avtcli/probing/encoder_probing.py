"""Heads on the features of one frozen encoder: where the features come from, and how the learning rates are chosen."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from avtcli.features.cache_storage import choose_storage, fits_memory
from avtcli.features.feature_cache import CachedFeatures, Stacks, cache_bytes, extract
from avtcli.features.feature_reader import Feature, FeatureReader, ForwardedImages
from avtcli.models.encoder import Encoder
from avtcli.probing.head import ClosedFormHead, HeadData, HeadFigures, TrainedHead
from avtcli.probing.head_training import Curve, HeadTraining, RowSubset, choose_and_train, train_heads
from avtcli.probing.joint_heads import HeadSpec
from avtcli.probing.probe_setup import HeadResult, ProbeSetup, Subset, split_held_out
from avtcli.runtime.devices import has_room

CACHED_TEST_BYTES = 2 * 2**30
"""Test features up to this size are cached on the device when training images are forwarded each epoch."""


def frozen_heads(setup: ProbeSetup, encoder: Encoder, name: str) -> Iterator[HeadResult]:
    """One head for each feature and subset, on an encoder in eval mode; `name` is for the progress."""
    for train, test in _readers(setup, encoder, name):
        for subset in setup.subsets:
            if isinstance(setup.head, ClosedFormHead):
                figures = [setup.head.fit(_head_data(setup, train, test, feature, subset)) for feature in train.shapes]
            else:
                task = " ".join([name, *dict.fromkeys(f.layer for f in train.shapes), subset.label]).rstrip()
                figures = _train(setup, train, test, subset, task=task)
            pairs = zip(train.shapes, figures, strict=True)
            yield from (setup.result(feature, subset, own) for feature, own in pairs)


def _head_data(setup: ProbeSetup, train: FeatureReader, test: FeatureReader, feature: Feature, subset: Subset) -> HeadData:
    assert isinstance(train, CachedFeatures)
    assert isinstance(test, CachedFeatures)
    flat = [reader.features[feature].movedim(1, -1).flatten(1) for reader in (train, test)]  # as in memory, without a copy
    rows = split_held_out(subset.rows, train.labels, setup.config.held_out, seed=subset.seed)
    return HeadData(flat[0], train.labels, flat[1], test.labels, subset.rows, *rows, setup.classes)


def _readers(setup: ProbeSetup, encoder: Encoder, name: str) -> Iterator[tuple[FeatureReader, FeatureReader]]:
    """Readers of training and test features: all features together, or where memory is short one after the other."""
    train, test = (setup.reader(encoder, data, setup.wanted) for data in (setup.train, setup.test))
    copies, device = setup.config.copies, setup.context.device
    if setup.config.augments and not copies:
        if cache_bytes(test) <= CACHED_TEST_BYTES:
            (stacks,) = extract(test, separate=False, task=f"{name} features, test", on_event=setup.context.on_event)
            yield train, CachedFeatures(_to_device(stacks, device), test.labels, device=device)
        else:
            yield train, test
        return
    plain = not copies or setup.config.searches_lr  # held-out images are not augmented
    needed = cache_bytes(train) * (plain + copies) + cache_bytes(test)
    folder, separate = choose_storage(needed), not _fit_together(setup, train, needed)

    def read(reader: ForwardedImages, copy: int | None = None) -> list[Stacks]:
        suffix = "" if copy is None else f", copy {copy + 1} of {copies}"
        task, key = f"{name} features, {reader.data.part}{suffix}", None if copy is None else (setup.config.seed, copy)
        return extract(reader, separate=separate, epoch_key=key, folder=folder, task=task, on_event=setup.context.on_event)

    cached = [*([read(train)] if plain else []), *(read(train, copy) for copy in range(copies))]
    for test_stacks, *train_stacks in zip(read(test), *cached, strict=True):
        total = sum(tensor.nbytes for stacks in (test_stacks, *train_stacks) for tensor in stacks.values())
        place = torch.device("cpu") if folder or not has_room(device, total) else device
        placed = [_to_device(stacks, place) for stacks in train_stacks]
        yield (
            CachedFeatures(placed[0], train.labels, device=device, copies=placed[plain:]),
            CachedFeatures(_to_device(test_stacks, place), test.labels, device=device),
        )


def _to_device(stacks: Stacks, device: torch.device) -> Stacks:
    return {names: tensor.to(device) for names, tensor in stacks.items()}


def _fit_together(setup: ProbeSetup, train: FeatureReader, needed: int) -> bool:
    """Whether all heads fit in memory together with the features."""
    if not isinstance(setup.head, TrainedHead):
        return False
    with torch.device("meta"):
        heads = [setup.head.build(f.layer, shape, setup.classes) for f, shape in train.shapes.items()]
    tensors = 5  # weights, two moments, gradients, and the scaled weights of linear heads
    weights = 4 * tensors * len(setup.config.learning_rates) * sum(p.numel() for head in heads for p in head.parameters())
    return fits_memory(needed + weights) and has_room(setup.context.device, needed + weights)


def _train(setup: ProbeSetup, train: FeatureReader, test: FeatureReader, subset: Subset, *, task: str) -> list[HeadFigures]:
    """One head for each feature, all trained together."""
    assert isinstance(setup.head, TrainedHead)
    context = replace(setup.context, seed=subset.seed)
    training = HeadTraining(setup.head, setup.config, setup.classes, context, f"{task}: head")

    def run(specs: Sequence[HeadSpec], rows: Tensor, held_out: Tensor | None) -> list[Curve]:
        if held_out is None:
            everything = RowSubset(test, torch.arange(len(test.labels)))
            return train_heads(RowSubset(train, rows), everything, specs, training)
        search = replace(training, config=setup.config.for_lr_search(len(rows)), task=f"{task}: rate")
        return train_heads(RowSubset(train, rows), RowSubset(train, held_out), specs, search)

    return choose_and_train(list(train.shapes), subset, train.labels, setup.config, run)
