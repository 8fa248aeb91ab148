"""Runs side by side: the settings that differ, and figures with mean and standard deviation over seeds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from avtcli.events import Notice, OnEvent
from avtcli.reporting.run_summary import FigureKey, RunSummary, summarize_run

IMAGES: Final = ("dataset.", "augment.resize", "augment.crop")
DEPENDS: Final = {
    "loss": ("dataset.", "augment.", "limit_train", "transform.", "objective.", "homographies", "bank_count"),
    "mace_px": (*IMAGES, "transform."),
    "knn_top1": (*IMAGES, "limit_train"),
}
"""Settings, by the beginning of their names, without whose equality figures of training are not comparable."""
TARGET: Final = "transform.target"
"""What a decoder predicts of a transformation; the corner error does not depend on it."""


@dataclass(frozen=True)
class GroupFigure:
    """A figure of a group: see `FigureKey`; its mean and standard deviation (n - 1) over the runs that have it.

    Of one run, `std` is that over the seeds of its probe, else none. A figure of training has the settings that it depends on,
    the weights apart, as its conditions.
    """

    section: str
    name: str
    conditions: dict[str, Any]
    mean: float
    std: float | None
    runs: int


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ by their seed alone, with those of their settings in which the groups differ."""

    runs: list[str]
    seeds: list[int | None]
    steps: list[int]
    complete: list[bool]
    settings: dict[str, Any]
    figures: list[GroupFigure]


@dataclass(frozen=True)
class RunComparison:
    """Result of `avt compare`: the names of the settings that differ, and the groups."""

    differing: list[str]
    groups: list[RunGroup]


def compare_runs(runs: Sequence[Path], *, on_event: OnEvent) -> RunComparison:
    """Compare run folders; one that is given twice counts once. See `summarize_run`."""
    summaries = [summarize_run(run, on_event=on_event) for run in {run.resolve(): run for run in runs}.values()]
    for summary in summaries:
        if not summary.complete:
            on_event(Notice(f"{summary.run} is not complete: its figures are those so far, step {summary.step}"))
    return compare_summaries(summaries)


def compare_summaries(summaries: Sequence[RunSummary]) -> RunComparison:
    """Compare runs by their summaries."""
    grouped: dict[str, list[RunSummary]] = {}
    for summary in summaries:
        grouped.setdefault(json.dumps({**summary.settings, "seed": None}, sort_keys=True, default=str), []).append(summary)
    firsts = [members[0].settings for members in grouped.values()]
    names = dict.fromkeys(name for settings in firsts for name in settings if name != "seed")
    differing = [name for name in names if any(settings.get(name) != firsts[0].get(name) for settings in firsts)]
    return RunComparison(differing, [_group(members, differing) for members in grouped.values()])


def _group(members: Sequence[RunSummary], differing: Sequence[str]) -> RunGroup:
    keys = dict.fromkeys(key for member in members for key in member.figures)
    return RunGroup(
        runs=[str(member.run) for member in members],
        seeds=[member.settings.get("seed") for member in members],
        steps=[member.step for member in members],
        complete=[member.complete for member in members],
        settings={name: members[0].settings.get(name) for name in differing},
        figures=[_figure(key, [member for member in members if key in member.figures]) for key in keys],
    )


def _figure(key: FigureKey, members: Sequence[RunSummary]) -> GroupFigure:
    values = [member.figures[key] for member in members]
    std = stdev(values) if len(values) > 1 else members[0].probe_stds.get(key)
    conditions = dict(key.conditions)
    if key.section == "training":
        conditions = {n: v for n, v in members[0].settings.items() if n.startswith(DEPENDS.get(key.name, ()))}
        if key.name == "mace_px":
            conditions.pop(TARGET, None)
    return GroupFigure(key.section, key.name, conditions, fmean(values), std, len(values))
