"""The main figures, each next to what it is compared with."""

from collections.abc import Sequence

from avtcli.config.run_length import describe_seconds
from avtcli.reporting.collected_run import CollectedRun
from avtcli.reporting.run_summary import FigureKey, best_probe
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
        constant = {**last, **run.results.get("result.json", {})}.get("constant_mace_px")
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
    probe = best_probe(run.summary)
    if probe is not None:
        note = "" if probe.baseline is None else f"random weights: {probe.baseline:.1f}\N{NO-BREAK SPACE}%"
        tiles.append((f"best probe: {probe.name}", f"{probe.top1:.1f}\N{NO-BREAK SPACE}%", note))
    if last.get("rankme") is not None:
        tiles.append(("effective rank of the code", figure_text(last["rankme"]), f"at most {last['rankme_max']}"))
    seconds = run.results.get("result.json", {}).get("seconds")
    if seconds is not None:
        steps = f"{run.summary.step} steps" if "device" not in run.environment else f"on {run.environment['device']}"
        tiles.append(("training time", describe_seconds(seconds), steps))
    return [Tiles(tiles)] if tiles else []
