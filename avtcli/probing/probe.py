"""Probing: what a classifier can read off an encoder's features, beside a random backbone."""

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from avtcli.config.components import Plugin
from avtcli.config.probe_config import ProbeConfig
from avtcli.data.datasets import limited
from avtcli.data.resident_images import EVAL_BATCH_SIZE
from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent, Saved, Started
from avtcli.features.evaluation_target import PreparedImages, labelled_test, load_target, prepare_images, read_images
from avtcli.features.feature_reader import Feature, tap_shapes
from avtcli.models.encoder import Encoder
from avtcli.models.model_building import build_encoder
from avtcli.models.weights import Weights, open_weights, restore_encoder
from avtcli.probing.encoder_probing import HeadResult, probe_encoder
from avtcli.probing.fine_tuning import supervised_encoder
from avtcli.probing.probe_protocol import describe_probe, describe_start
from avtcli.probing.probe_setup import ProbeSetup, subsets
from avtcli.runtime.context import Context
from avtcli.runtime.devices import choose_device
from avtcli.runtime.execution import prepare_for_inference
from avtcli.storage.files import disk_errors_explained, refuse_existing, to_json, write_synced


@dataclass(frozen=True)
class ProbeResult:
    """What `avt probe` reports: the heads on the backbone and, under the same protocol, on a random and a supervised one."""

    run: str
    protocol: dict[str, Any]
    results: list[HeadResult]
    baseline: list[HeadResult]
    supervised: list[HeadResult]


def probe(run: Weights | str | Path | None, config: ProbeConfig, *, out: Path | None, on_event: OnEvent) -> ProbeResult:
    """Probe the layers of an encoder.

    Args:
        run: the weights, opened or by name; none for the newest run, or where the config names a backbone.
        config: the protocol.
        out: where the result goes beside the run's probes folder; none for nowhere else.
        on_event: told what happens.

    Raises:
        AvtError: for data without labels or of other channels, a layer that does not exist, or a head that does not fit it.
    """
    if out is not None:
        refuse_existing(out)
    given: Encoder | None = None
    if config.backbone is None:
        run = run if isinstance(run, Weights) else open_weights(run, on_event=on_event)
        given = restore_encoder(run)
        _layers(given, config)  # told before any data are opened
    source, prepared = _open(run, config, on_event=on_event)
    given = given or restore_encoder(source)
    layers = _layers(given, config)
    setups = [_prepare(part, config, _wanted(given, layers, config, part), on_event=on_event) for part in prepared]
    random = build_encoder(source.spec, seed=config.seed).eval()
    compared = config.baseline and not _same(given, random, on_event=on_event)
    protocol = describe_probe(
        config, prepared[0].augment, source, layers=layers, data=[_counts(setup) for setup in setups], compared=compared
    )
    on_event(Started(describe_start(protocol, device=setups[0].device.type)))
    contestants = {"trained": given, **({"random": random} if compared else {})}
    tables = {name: _probe_all(setups, encoder, name) for name, encoder in contestants.items()}
    if config.supervised:
        on_device = prepare_for_inference(random, setups[0].device)
        tables["supervised"] = [
            result for setup in setups for result in probe_encoder(setup, supervised_encoder(setup, on_device), "supervised")
        ]
    result = ProbeResult(str(source.path), protocol, *(tables.get(name, []) for name in ("trained", "random", "supervised")))
    for path in _destinations(source, config, layers, out):
        with disk_errors_explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_synced(path, to_json(asdict(result)))
        on_event(Saved(path))
    return result


def _open(run: Weights | str | Path | None, config: ProbeConfig, *, on_event: OnEvent) -> tuple[Weights, list[PreparedImages]]:
    """The weights, and each data set as they are to see it."""
    given = config.dataset
    names = [None] if given is None else list(dict.fromkeys(part.strip() for part in given.name.split(",")))
    first, *others = (None if name is None else Plugin(name=name, **(given.options if given else {})) for name in names)
    data_dir, augment = config.data_dir, config.augment
    subject = load_target(
        run,
        backbone=config.backbone,
        dataset=first,
        data_dir=data_dir,
        augment=augment,
        context=Context.build(device=config.device, seed=config.seed, on_event=on_event),
    )
    source = subject.source
    prepared = [subject.prepared, *(prepare_images(d, source=source, data_dir=data_dir, augment=augment) for d in others)]
    for part in prepared:
        labelled_test(part)
    return source, prepared


def _layers(encoder: Encoder, config: ProbeConfig) -> list[str]:
    there = [layer for layer in encoder.layers if not config.finetune or layer in encoder.backbone.taps]
    if config.layers == ("all",):
        return there
    layers = list(dict.fromkeys(config.layers)) or [encoder.backbone.code_tap]
    encoder.check_layers(layers)
    if not set(layers) <= set(there):
        raise AvtError("A backbone that is fine-tuned has no log-variance branch: leave out NAME.log_var, or --finetune.")
    return layers


def _wanted(encoder: Encoder, layers: list[str], config: ProbeConfig, prepared: PreparedImages) -> list[Feature]:
    """The features to read, each layer reduced in each way; there is one way for a vector."""
    shapes = tap_shapes(encoder, layers, prepared.size)
    ways = ((layer, pool if len(shapes[layer]) > 1 else "none") for layer in layers for pool in config.poolings)
    return [Feature(layer, pool, config.side_of(layer)) for layer, pool in dict.fromkeys(ways)]


def _same(given: Encoder, random: Encoder, *, on_event: OnEvent) -> bool:
    """Whether the weights to probe are those of the random baseline; said, since there is then none."""
    pairs = zip(given.state_dict().values(), random.state_dict().values(), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    if same:
        on_event(Notice("these weights are random themselves: no other baseline is probed"))
    return same


def _probe_all(setups: list[ProbeSetup], encoder: Encoder, name: str) -> list[HeadResult]:
    on_device = prepare_for_inference(encoder, setups[0].device)
    return [result for setup in setups for result in probe_encoder(setup, on_device, name)]


def _prepare(prepared: PreparedImages, config: ProbeConfig, wanted: list[Feature], *, on_event: OnEvent) -> ProbeSetup:
    data, test = prepared.data, labelled_test(prepared)
    device = torch.device(choose_device(config.device))
    chosen = {"train": (data.train, limited(data.train, config.limit_train)), "test": (test, torch.arange(len(test)))}
    images, labels = {}, {}
    for part, (split, numbers) in chosen.items():
        batch = max(config.batch_size + 1, EVAL_BATCH_SIZE)
        images[part] = read_images(split, numbers, prepared, context=Context(device, config.workers), batch=batch)
        assert split.labels is not None
        labels[part] = split.labels[numbers].to(device)
    return ProbeSetup(
        config=config,
        prepared=prepared,
        images=images,
        labels=labels,
        wanted=wanted,
        subsets=list(subsets(config, labels["train"])),
        device=device,
        classes=max(len(data.classes or ()), 1 + int(torch.cat([*labels.values()]).max())),
        on_event=on_event,
    )


def _counts(setup: ProbeSetup) -> dict[str, Any]:
    counts = {"train_images": len(setup.images["train"]), "test_images": len(setup.images["test"]), "classes": setup.classes}
    return {"dataset": setup.prepared.dataset.name, **counts}


def _destinations(source: Weights, config: ProbeConfig, layers: list[str], out: Path | None) -> list[Path]:
    paths = [] if out is None else [out]
    if source.run is not None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        which = "all" if config.layers == ("all",) else "-".join(layers)
        how = ["finetuned"] if config.finetune else []
        name = "-".join([stamp, which, *config.poolings, config.head, *how])
        paths.append(source.run / "probes" / f"{name}.json")
    return paths
