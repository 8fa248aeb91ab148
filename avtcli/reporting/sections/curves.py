"""Curves of training."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from statistics import fmean
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from avtcli.reporting.collected_run import CollectedRun
from avtcli.reporting.sections._blocks import Charts, Section
from avtcli.reporting.sections._pictures import DASHES, MUTED, SERIES, draw

POINTS: Final = 300
"""Points of a curve of steps; those between are averaged."""
EPOCHS: Final = 3
"""Epochs from which the means by epoch are drawn."""
LEAD = (
    "The loss over the steps, and in bold its mean by epoch; the rate of the backbone. The other figures were measured in eval "
    "mode on the same images each time."
)

Point = tuple[float, float]


@dataclass(frozen=True)
class _Curve:
    """A figure of metrics.jsonl, of evaluations or of steps; `limit` names the figure of a dashed line, and what it is."""

    title: str
    name: str
    unit: str = ""
    evaluated: bool = True
    limit: tuple[str, str] | None = None


CURVES: Final = (
    _Curve("Loss", "loss", evaluated=False),
    _Curve("Corner error", "mace_px", "px", limit=("constant_mace_px", "guessing")),
    _Curve("k-NN top-1", "knn_top1", "%"),
    _Curve("Effective rank of the code", "rankme", limit=("rankme_max", "at most")),
    _Curve("Standard deviation of the code", "code_std"),
    _Curve("Learning rate", "lr", evaluated=False),
)


def curves(runs: Sequence[CollectedRun]) -> Section | None:
    """Loss, learning rate and the evaluations during training, by epoch, all runs in one chart each."""
    by_epoch = all(_steps_per_epoch(run) for run in runs)
    charts = []
    for curve in CURVES:
        found = {run.index: _points(run, curve, by_epoch=by_epoch) for run in runs}
        found = {index: points for index, points in found.items() if points}
        if not found:
            continue
        limits = {_last(runs[index], curve.limit[0]) for index in found} if curve.limit else set()
        limit = limits.pop() if len(limits) == 1 else None
        means = {run.index: _means(run) for run in runs if curve.name == "loss" and by_epoch}
        svg = draw(partial(_plot, found=found, means=means, limit=limit, by_epoch=by_epoch), label=f"{curve.title} by epoch")
        charts.append((curve.title, svg, _note(curve, found, limit)))
    legend = [(f"s{run.index % len(SERIES)}", run.name) for run in runs] if len(runs) > 1 else []
    return Section(20, "Training", LEAD, [Charts(charts, legend)]) if charts else None


def _note(curve: _Curve, found: dict[int, list[Point]], limit: float | None) -> str:
    """From where to where one run's curve goes, and what the dashed line is."""
    words = []
    if len(found) == 1 and curve.evaluated:
        ((first, *_, last),) = (points if len(points) > 1 else points * 2 for points in found.values())
        words.append(f"{first[1]:.3g} → {last[1]:.3g} {curve.unit}".rstrip())
    elif curve.unit:
        words.append(curve.unit)
    if limit is not None and curve.limit:
        words.append(f"dashed: {curve.limit[1]} {limit:.3g}")
    return ", ".join(words)


def _plot(
    axes: Axes, *, found: dict[int, list[Point]], means: dict[int, list[Point]], limit: float | None, by_epoch: bool
) -> None:
    for index, points in found.items():
        style: dict[str, Any] = {"color": SERIES[index % len(SERIES)], "linestyle": DASHES[index // len(SERIES) % len(DASHES)]}
        bold = means.get(index, []) if len(means.get(index, [])) >= EPOCHS else []
        faint = {"alpha": 0.35, "linewidth": 0.8} if bold else {"marker": "o" if len(points) < 40 else None, "markersize": 3}
        axes.plot(*zip(*points, strict=True), **style, **faint)
        if bold:
            axes.plot(*zip(*bold, strict=True), **style)
    if limit is not None:
        axes.axhline(limit, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    axes.set_xlabel("epoch" if by_epoch else "step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(axis="y", scilimits=(-3, 5))
    axes.set_xlim(left=0)


def _steps_per_epoch(run: CollectedRun) -> int | None:
    """The number of steps of the first epoch; none for a run that has not finished it."""
    begun = next((line["step"] for line in run.lines if "loss" in line and line["epoch"] >= 1), None)
    return None if begun is None or begun < 2 else begun - 1


def _points(run: CollectedRun, curve: _Curve, *, by_epoch: bool) -> list[Point]:
    points = _evaluations(run, curve.name) if curve.evaluated else _steps(run, curve.name)
    length = (_steps_per_epoch(run) or 1) if by_epoch else 1
    return [(step / length, value) for step, value in points]


def _steps(run: CollectedRun, name: str) -> list[Point]:
    """Means over stretches of steps of one length."""
    own = [(line["step"], line[name]) for line in run.lines if _is_number(line.get(name))]
    width = max(1, -(-len(own) // POINTS))
    return [_mean(part) for _, part in groupby(own, key=lambda point: (point[0] - 1) // width)]


def _means(run: CollectedRun) -> list[Point]:
    """The mean loss of each epoch, at its middle."""
    own = [(line["epoch"], line["loss"]) for line in run.lines if _is_number(line.get("loss"))]
    return [(epoch + 0.5, _mean(part)[1]) for epoch, part in groupby(own, key=lambda point: point[0])]


def _mean(points: Iterable[Point]) -> Point:
    steps, values = zip(*points, strict=True)
    return fmean(steps), fmean(values)


def _evaluations(run: CollectedRun, name: str) -> list[Point]:
    found = [(line["step"], line["eval"].get(name)) for line in run.lines if isinstance(line.get("eval"), dict)]
    return [(0 if step == 1 else step, value) for step, value in found if _is_number(value)]  # step 1 stands for the start


def _last(run: CollectedRun, name: str) -> float | None:
    points = _evaluations(run, name)
    return points[-1][1] if points else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
