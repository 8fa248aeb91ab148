"""Probing: the accuracy of a classifier on an encoder's features, compared with a random backbone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avtcli.config.components import FEW_IMAGES, Plugin
from avtcli.config.probe_config import ProbeConfig
from avtcli.config.value_text import flat_settings
from avtcli.contracts import Split
from avtcli.data.held_out import limited, partition
from avtcli.data.resident_images import EVAL_BATCH_SIZE
from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent, Saved, Started
from avtcli.features.batch_statistics import calibrate, prepare_baseline, silent_scales
from avtcli.features.evaluation_target import (
    ImagePart,
    PreparedImages,
    check_labels,
    identify,
    load_target,
    measure_usable,
    prepare_images,
    read_images,
)
from avtcli.features.feature_reader import Feature, LabelledImages, tap_shapes
from avtcli.features.pooling import pools_nothing
from avtcli.models.encoder import Encoder
from avtcli.models.initial_weights import report_uninitialised
from avtcli.models.model_building import build_encoder
from avtcli.models.siamese import batch_norms
from avtcli.models.weights import Weights, open_weights, restore_encoder
from avtcli.probing.encoder_probing import frozen_heads, supervised_encoder, tuned_heads
from avtcli.probing.head import Head, TrainedHead, check_head
from avtcli.probing.heads import resolve_head
from avtcli.probing.probe_protocol import describe_probe, describe_start, describe_used
from avtcli.probing.probe_setup import HeadResult, ProbeSetup, Subset, subset_rows
from avtcli.runtime.devices import Context
from avtcli.runtime.execution import prepare_for_inference
from avtcli.runtime.processes import check_agreement, failing_together
from avtcli.storage.files import refuse_existing, to_json, write_file
from avtcli.storage.run_folders import folder_for_results


@dataclass(frozen=True)
class ProbeResult:
    """What `avt probe` reports: the heads on the backbone, and under the same protocol on a random and a supervised one.

    `step` is that of the weights; none for a backbone by name.
    """

    run: str
    step: int | None
    protocol: dict[str, Any]
    results: list[HeadResult]
    baseline: list[HeadResult]
    supervised: list[HeadResult]


def probe(run: Weights | str | Path | None, config: ProbeConfig, *, out: Path | None, on_event: OnEvent) -> ProbeResult:
    """Probe the layers of an encoder, and write the result into the run's probes folder, if it can be written, and to `out`.

    The weights of `run` are opened or by name; none means the newest run, or the backbone that the config names.

    Raises:
        AvtError: for data without labels or with other channels, a layer that does not exist, or a head that does not fit it.
    """
    if out is not None:
        refuse_existing(out)
    head = resolve_head(config.head)
    check_head(head, config)
    config = config.model_copy(update={"pool": config.pool or (head.pool,)})
    context = Context.build(device=config.device, workers=config.workers, seed=config.seed, on_event=on_event)
    with failing_together(context.group):
        source, prepared = _open(run, config, context)
        parts = [part for own in prepared for part in _choose_parts(own, config)]
    settings = config.model_dump(mode="json", exclude={"data_dir", "init_from"})
    check_agreement(context.group, {**flat_settings(settings), "--out": out, **identify(source, prepared)})
    kept = folder_for_results(source.run, on_event=on_event) if context.is_main else None
    result = measure_usable(parts, lambda usable: _measure(source, config, head, usable, context), context=context)
    layers = result.protocol["layers"]
    for path in _destinations(kept, config, layers, out) if context.is_main else ():
        write_file(path, to_json(asdict(result)))
        on_event(Saved(path))
    return result


def _measure(source: Weights, config: ProbeConfig, head: Head, parts: Sequence[ImagePart], context: Context) -> ProbeResult:
    """Probe on the training and test images of each data set in turn."""
    on_event, given = context.on_event, restore_encoder(source)
    layers = _layers(given, config)
    report_uninitialised(source, given, layers, parts[0].prepared.size, on_event=on_event)
    with failing_together(context.group):
        setups = [
            _build_setup(train, test, config, head, wanted=_wanted(given, layers, config, train.prepared), context=context)
            for train, test in zip(parts[::2], parts[1::2], strict=True)
        ]
    for setup in setups:
        _report_limits(setup)
    random = build_encoder(source.spec, seed=config.seed).eval()
    compared = config.baseline and not _is_baseline(given, random, config)
    if compared != config.baseline:
        on_event(Notice("these weights are random themselves: no other baseline is probed"))
    protocol = describe_probe(setups, source, given, baseline=random if compared else None)
    on_event(Started(describe_start(protocol, source, device=context.device.type)))
    results = _probe_all(setups, given, "trained", _calibrated if config.calibrate_bn else None)
    baseline = _probe_all(setups, random, "random", None if config.finetune else _as_baseline) if compared else []
    random = build_encoder(source.spec, seed=config.seed).eval()  # training begins at the weights as they are initialised
    supervised = _probe_all(setups, random, "supervised", supervised_encoder) if config.supervised else []
    protocol["used"] = describe_used(results) or None
    return ProbeResult(str(source.path), source.step, protocol, results, baseline, supervised)


def _report_limits(setup: ProbeSetup) -> None:
    """Report what keeps the figures of a data set from saying much: few images, or classes that no head can know."""
    labels, name = setup.test.labels, setup.test.part
    if (count := len(labels)) < FEW_IMAGES:
        setup.context.on_event(Notice(f"{count} {name} images: one is {100 / count:.1f} points"))
    if unknown := int(torch.isin(labels, setup.train.labels, invert=True).sum()):
        most = 100 * (1 - unknown / count)
        text = f"{unknown} of {count} {name} images are of classes without training images: top-1 is at most {most:.1f} %"
        setup.context.on_event(Notice(text))


def _choose_parts(prepared: PreparedImages, config: ProbeConfig) -> tuple[ImagePart, ImagePart]:
    """The images to train heads on, and those to test them on."""
    parts, train = partition(prepared.data), prepared.data.train
    chosen = ImagePart("train", train, limited(parts.train, config.limit_train), prepared)
    return chosen, ImagePart(parts.name, parts.split, parts.held_out, prepared)


def _open(run: Weights | str | Path | None, config: ProbeConfig, context: Context) -> tuple[Weights, list[PreparedImages]]:
    """The weights, and each data set as they take it."""
    if config.backbone is None and config.init_from is None:
        run = run if isinstance(run, Weights) else open_weights(run, on_event=context.on_event)
        _layers(restore_encoder(run), config)  # checked before any data are opened
    given = config.dataset
    names = [None] if given is None else list(dict.fromkeys(part.strip() for part in given.name.split(",")))
    first, *others = (None if name is None else Plugin(name=name, **(given.options if given else {})) for name in names)
    shared: dict[str, Any] = {"data_dir": config.data_dir, "augment": config.augment}
    weights: dict[str, Any] = {"backbone": config.backbone, "init_from": config.init_from}
    target = load_target(run, **weights, dataset=first, context=context, **shared)
    source = target.source
    more = partial(prepare_images, source=source, on_event=context.on_event, **shared)
    prepared = [target.prepared, *map(more, others)]
    for part in prepared:
        check_labels(part)
    return source, prepared


def _layers(encoder: Encoder, config: ProbeConfig) -> list[str]:
    if config.layers == ("all",):
        return list(encoder.layers)
    layers = list(dict.fromkeys(config.layers)) or [encoder.backbone.code_tap]
    encoder.check_layers(layers)
    if config.finetune and not set(layers) <= set(encoder.layers):
        raise AvtError("A backbone that is fine-tuned has no log-variance branch: leave out NAME.log_var, or --finetune.")
    return layers


def _is_baseline(given: Encoder, random: Encoder, config: ProbeConfig) -> bool:
    """Whether a network is measured just as its random baseline would be."""
    alike = config.finetune or (not silent_scales(random) and (config.calibrate_bn or not any(batch_norms(random))))
    return alike and all(map(torch.equal, given.state_dict().values(), random.state_dict().values()))


def _as_baseline(setup: ProbeSetup, random: Encoder) -> Encoder:
    return prepare_baseline(random, setup.train.images, setup.train.size, context=setup.context)


def _calibrated(setup: ProbeSetup, encoder: Encoder) -> Encoder:
    return calibrate(encoder, setup.train.images, setup.train.size, task="trained", context=setup.context)


def _wanted(encoder: Encoder, layers: list[str], config: ProbeConfig, prepared: PreparedImages) -> list[Feature]:
    """The features to read: each layer with each pooling, or without where pooling changes nothing."""
    shapes = tap_shapes(encoder, layers, prepared.size)
    plain = {layer for layer in layers if pools_nothing(shapes[layer], config.side_of(layer))}
    pairs = ((layer, "none" if layer in plain else pool) for layer in layers for pool in config.pool)
    return [Feature(layer, pool, config.side_of(layer)) for layer, pool in dict.fromkeys(pairs)]


def _probe_all(
    setups: list[ProbeSetup], encoder: Encoder, name: str, prepare: Callable[[ProbeSetup, Encoder], Encoder] | None = None
) -> list[HeadResult]:
    """All heads on an encoder, as `prepare` returns it for a data set: by data set, feature, number of shots and seed."""
    encoder = prepare_for_inference(encoder, setups[0].context.device)
    results: list[HeadResult] = []
    for setup in setups:
        own = prepare(setup, encoder) if prepare else encoder
        if isinstance(setup.head, TrainedHead):
            with torch.device("meta"):  # a head that does not fit is refused before features are read
                for feature, shape in setup.reader(own, setup.train, setup.wanted).shapes.items():
                    setup.head.build(feature.layer, shape, setup.classes)
        heads = tuned_heads if setup.config.finetune else frozen_heads
        order = [(feature.layer, feature.pool) for feature in setup.wanted]
        results += sorted(heads(setup, own, name), key=lambda result: order.index((result.layer, result.pool)))
    return results


def _build_setup(
    train: ImagePart, test: ImagePart, config: ProbeConfig, head: Head, *, wanted: list[Feature], context: Context
) -> ProbeSetup:
    prepared = train.prepared

    def read(part: str, split: Split, rows: Tensor) -> LabelledImages:
        batch = max(config.batch_size + 1, EVAL_BATCH_SIZE)
        images = read_images(split, rows, prepared, context=context, batch=batch)
        assert split.labels is not None
        labels = split.labels[rows]
        if unlabelled := int((labels < 0).sum()):
            raise AvtError(
                f"{unlabelled} of the {len(labels)} {part} images of '{prepared.dataset.name}' have no label (-1). Give a data "
                "set of labelled images alone."
            )
        return LabelledImages(images, labels.to(context.device), part, prepared.size)

    images = read(train.name, train.split, train.indices), read(test.name, test.split, test.indices)
    if images[0].labels.min() == images[0].labels.max():
        raise AvtError(
            f"All {len(train.indices)} training images of '{prepared.dataset.name}' are of one class: a probe needs two."
        )
    classes = max(len(prepared.data.classes or ()), *(1 + int(part.labels.max()) for part in images))
    draws = [(shots, seed) for shots in config.shots or (None,) for seed in range(config.seed, config.seed + config.seeds)]
    labels = images[0].labels.cpu()
    names = prepared.data.classes or ()
    subsets = [
        Subset(subset_rows(labels, shots=n, fraction=config.fraction, seed=seed, names=names), n, seed) for n, seed in draws
    ]
    return ProbeSetup(config, head, prepared, *images, wanted=wanted, subsets=subsets, classes=classes, context=context)


def _destinations(run: Path | None, config: ProbeConfig, layers: list[str], out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
    if run is not None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        which = "all" if config.layers == ("all",) else "-".join(layers)
        name = "-".join([stamp, which, *config.pool, config.head.name, *(["finetuned"] if config.finetune else [])])
        yield run / "probes" / f"{name}.json"
