"""Probing: what a simple classifier can read off frozen features, beside a random backbone."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from avtcli.config import Augment, Plugin, ProbeConfig
from avtcli.contracts import ImageData, Split
from avtcli.core.encoder import Encoder
from avtcli.errors import AvtError
from avtcli.runs.devices import choose_device
from avtcli.runs.events import OnEvent, Saved, Started
from avtcli.runs.features import BATCH, Feature
from avtcli.runs.files import disk_errors_explained, refuse_existing, to_json, write_synced
from avtcli.runs.loaders import build_data, build_images, image_size, limited
from avtcli.runs.loading import Source, build_encoder, encoder_of
from avtcli.runs.probe_heads import HeadResult, Job, probe_encoder, shot_rows
from avtcli.runs.probe_protocol import describe_probe, describe_start
from avtcli.runs.streaming import choose_workers


@dataclass(frozen=True)
class ProbeResult:
    """What `avt probe` reports: the heads on the trained backbone and, under the same protocol, on a random one."""

    run: str
    protocol: dict[str, Any]
    results: list[HeadResult]
    baseline: list[HeadResult]


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
    tables = {name: probe_encoder(job, encoder.to(job.device), name) for name, encoder in encoders.items()}
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
    for shots in config.shots:
        shot_rows(labels["train"].cpu(), shots, seed=config.seed)  # too many are told before anything is computed
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


def _destinations(source: Source, config: ProbeConfig, layers: Sequence[str], out: Path | None) -> list[Path]:
    paths = [] if out is None else [out]
    if source.run is not None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        which = "all" if config.layers == ("all",) else "-".join(layers)
        paths.append(source.run / "probes" / f"{stamp}-{which}-{config.pooling}-{config.head}.json")
    return paths
