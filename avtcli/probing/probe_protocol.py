"""The protocol of a probe as data: resolved settings and facts that are needed to compare its figures with others."""

from collections.abc import Mapping, Sequence
from typing import Any

from avtcli.config.probe_config import LR_SEARCH_STEPS, ProbeConfig
from avtcli.features.batch_statistics import describe_baseline, describe_statistics
from avtcli.models.encoder import Encoder
from avtcli.models.weights import Weights
from avtcli.probing.head import ClosedFormHead
from avtcli.probing.heads import resolve_options
from avtcli.probing.probe_setup import HeadResult, ProbeSetup, split_held_out

SHARED = {"recipe", "finetune", "pool", "copies", "fraction", "limit_train", "seed", "seeds"}
"""Settings that the protocol reports as they are."""


def describe_probe(
    setups: Sequence[ProbeSetup], source: Weights, encoder: Encoder, *, baseline: Encoder | None
) -> dict[str, Any]:
    """Describe what the figures depend on; there is a setup for each data set, and a baseline as it is initialised."""
    config, head, augment = setups[0].config, setups[0].head, setups[0].prepared.augment.model_dump()
    layers = list(dict.fromkeys(feature.layer for feature in setups[0].wanted))
    reported = " and ".join(dict.fromkeys(f"{setup.test.part} split" for setup in setups))
    images = [len(setup.train.labels) for setup in setups]
    closed, candidates = isinstance(head, ClosedFormHead), _candidates(setups[0])
    options = {key: list(v) if isinstance(v, tuple) else v for key, v in resolve_options(config.head).items()}
    options |= {key: list(values) for key, values in candidates.items() if key in options}  # as the images allow
    return {
        **config.model_dump(mode="json", include=SHARED),
        "data": [
            {
                "dataset": setup.prepared.dataset.name,
                "train_images": len(setup.train.labels),
                "test_images": len(setup.test.labels),
                "split": setup.test.part,
                "classes": setup.classes,
            }
            for setup in setups
        ],
        "shots": list(config.shots) or None,
        "layers": layers,
        "pool_size": {layer: config.side_of(layer) for layer in layers} if set(config.pool) != {"none"} else None,
        "samples": config.samples if source.spec.noise_scale and not config.finetune else 0,
        "resize": augment["resize"],
        "crop": augment["crop"],
        "augmentation": {"crop": "random", "padding": augment["padding"], "flip": augment["flip"]} if config.augments else None,
        "mean": list(source.spec.mean),
        "std": list(source.spec.std),
        "head": {"name": config.head.name, "description": head.description, **options},
        **({} if closed else _training(config)),
        "chosen": _chosen(setups, candidates, steps=None if closed or config.finetune else LR_SEARCH_STEPS),
        "reported": reported if closed else f"{reported}, last epoch",
        "calibrated": describe_statistics(encoder, images) if config.calibrate_bn else None,
        "baseline": None if baseline is None else {"backbone": _baseline(baseline, images, config), "seed": config.seed},
        "supervised": _training(config.to_finetune()) if config.supervised else None,
        "weights": source.about.get("weights"),
    }


def _baseline(random: Encoder, images: Sequence[int], config: ProbeConfig) -> str:
    return "random weights" if config.finetune else describe_baseline(random, images)


def describe_used(results: Sequence[HeadResult]) -> dict[str, list[float]]:
    """The values that the reported heads were fitted with, by name, each once."""
    names = dict.fromkeys(name for result in results for name in result.chosen)
    return {name: sorted({result.chosen[name] for result in results if name in result.chosen}) for name in names}


def _training(config: ProbeConfig) -> dict[str, Any]:
    settings = config.model_dump(mode="json", include={"optimizer", "schedule", "batch_size"})
    rates = list(config.learning_rates) if config.schedule is None else None
    return {**settings, "rates": rates, "epochs": config.total_epochs}


def _candidates(setup: ProbeSetup) -> Mapping[str, Sequence[float]]:
    """The values that a head is chosen among, by name, on its largest subset of the images."""
    if not isinstance(setup.head, ClosedFormHead):
        return {"rate": setup.config.learning_rates} if setup.config.searches_lr else {}
    subset = max(setup.subsets, key=lambda subset: len(subset.rows))
    to_fit, _ = split_held_out(subset.rows, setup.train.labels, seed=subset.seed)
    return setup.head.candidates(len(to_fit), len(subset.rows))


def _chosen(
    setups: Sequence[ProbeSetup], candidates: Mapping[str, Sequence[float]], *, steps: int | None
) -> dict[str, Any] | None:
    several = {name: list(values) for name, values in candidates.items() if len(values) > 1}
    pairs = ((setup.train.labels, subset) for setup in setups for subset in setup.subsets)
    counts = {len(split_held_out(subset.rows, labels, seed=subset.seed)[1]) for labels, subset in pairs} - {0}
    return {**several, "held_out": sorted(counts), "steps": steps} if several and counts else None


def describe_start(protocol: Mapping[str, Any], source: Weights, *, device: str) -> tuple[tuple[str, str], ...]:
    """The lines to print before the first step."""
    data = [f"{d['dataset']}: {d['train_images']} + {d['test_images']} images" for d in protocol["data"]]
    return (
        ("weights", str(source)),
        ("recipe", protocol["recipe"] or "none: default protocol"),
        ("data", "; ".join(data)),
        ("layers", ", ".join(protocol["layers"])),
        ("head", f"{protocol['head']['name']}: {protocol['head']['description']}"),
        *([("epochs", f"{protocol['epochs']}")] if "epochs" in protocol else []),
        ("images", "random crop and flip" if protocol["augmentation"] else "no augmentation"),
        ("device", device),
    )
