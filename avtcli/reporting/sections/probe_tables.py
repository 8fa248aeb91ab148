"""Accuracy of probes by layer, next to random weights."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from avtcli.config.value_text import options_of, value_text
from avtcli.errors import AvtError
from avtcli.reporting.collected_run import CollectedRun
from avtcli.reporting.sections._blocks import Bar, Bars, Block, Grid, Section, side_by_side

LEAD = (
    "Top-1 accuracy of classifiers on frozen features, next to the same protocol on random weights. Unfold "
    "the protocol before you compare a figure with another's."
)


def probe_tables(runs: Sequence[CollectedRun]) -> Section:
    """The figures of `avt probe`."""
    return Section(60, "Probes", LEAD, side_by_side(runs, _probes))


def _probes(run: CollectedRun) -> list[Block]:
    probes = [content for content in run.results.values() if "results" in content and "protocol" in content]
    if not probes:
        raise AvtError(f"no probe of these weights is stored. Probe them with `avt probe {run.summary.run} --layer all`")
    return [Grid([_bars(probe, data) for probe in probes for data in probe["protocol"]["data"]])]


def _bars(probe: Mapping[str, Any], data: Mapping[str, Any]) -> Bars:
    """The figures of a probe on one of its data sets."""
    results, random = (
        [r for r in probe.get(name) or [] if r["dataset"] == data["dataset"]] for name in ("results", "baseline")
    )
    baselines, bars = _means(random), []
    for key, top1 in _means(results).items():
        baseline = baselines.get(key)
        text = "" if baseline is None else f"{baseline:.1f} % ({top1 - baseline:+.1f})"
        bars.append(Bar(" · ".join(key), top1, f"{top1:.1f} %", baseline, text))
    first, protocol = results[0], probe["protocol"]
    recipe = protocol.get("recipe")
    words = [f"{first['head']}{f' ({recipe})' if recipe else ''}", data["dataset"]]
    words += ["" if first.get("shots") else f"{first['train_images']} labelled images"]
    words += [f"tested on {data['test_images']} {'held-out training' if data['split'] == 'held-out' else 'test'} images"]
    options = options_of(protocol.get("head"))
    seeds = len({result["seed"] for result in results})
    words += [value_text(options) if options else "", f"mean of {seeds} seeds" if seeds > 1 else ""]
    return Bars(" · ".join(filter(None, words)), bars, 100.0, "random weights" if baselines else "", protocol)


def _means(results: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], float]:
    """Mean top-1 over the seeds, by layer, pooling and shots."""
    found: dict[tuple[str, ...], list[float]] = {}
    for result in results:
        key = result["layer"], result["pool"], f"{result['shots']} shots" if result.get("shots") else ""
        found.setdefault(tuple(filter(None, key)), []).append(result["top1"])
    return {key: fmean(values) for key, values in found.items()}
