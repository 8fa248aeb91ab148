"""The main figures, each next to what it is compared with."""

from collections.abc import Sequence

from avtcli.reporting.collected_run import CollectedRun
from avtcli.reporting.run_summary import FigureKey
from avtcli.reporting.sections._blocks import Block, Section, Tiles, figure_text, side_by_side


def headline(runs: Sequence[CollectedRun]) -> Section:
    """The figures that say first whether a run learned anything."""
    return Section(0, "At a glance", "", side_by_side(runs, _tiles))


def _tiles(run: CollectedRun) -> list[Block]:
    evaluations = [line["eval"] for line in run.lines if isinstance(line.get("eval"), dict)]
    first, last = (evaluations[0], evaluations[-1]) if evaluations else ({}, {})
    figures = run.summary.figures
    tiles = []
    mace = figures.get(FigureKey("training", "mace_px"))
    if mace is not None:
        constant = last.get("constant_mace_px")
        note = "" if constant is None else f"guessing: {constant:.1f}\N{NO-BREAK SPACE}px"
        tiles.append(("mean corner error", f"{mace:.1f}\N{NO-BREAK SPACE}px", note))
    knn = figures.get(FigureKey("training", "knn_top1"))
    if knn is not None:
        before = first.get("knn_top1")
        tiles.append(
            (
                "k-NN during training",
                f"{knn:.1f}\N{NO-BREAK SPACE}%",
                "" if before is None else f"before training: {before:.1f}\N{NO-BREAK SPACE}%",
            )
        )
    if probe := _best_probe(run):
        tiles.append(probe)
    if last.get("rankme") is not None:
        tiles.append(("effective rank of the code", figure_text(last["rankme"]), f"at most {last['rankme_max']}"))
    seconds = run.results.get("result.json", {}).get("seconds")
    if seconds is not None:
        steps = f"{run.summary.step} steps" if "device" not in run.environment else f"on {run.environment['device']}"
        tiles.append(("training time", _time(seconds), steps))
    return [Tiles(tiles)] if tiles else []


def _best_probe(run: CollectedRun) -> tuple[str, str, str] | None:
    """The best layer of all probes that have a baseline, by top-1."""
    best: tuple[float, str, str, str] | None = None
    for content in run.results.values():
        for result, random in zip(content.get("results", ()), content.get("baseline", ()), strict=False):
            label = f"best probe: {result['head']} on {result['layer']}"
            found = (
                result["top1"],
                label,
                f"{result['top1']:.1f}\N{NO-BREAK SPACE}%",
                f"random weights: {random['top1']:.1f}\N{NO-BREAK SPACE}%",
            )
            best = found if best is None or found[0] > best[0] else best
    return None if best is None else best[1:]


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
