"""How well the transformation is predicted, next to predictors that see no image."""

from collections.abc import Sequence
from typing import Any

from avtcli.errors import AvtError
from avtcli.reporting.collected_run import CollectedRun
from avtcli.reporting.run_summary import BASELINES
from avtcli.reporting.sections._blocks import Bar, Bars, Block, Fold, Section, Table, figure_text, side_by_side

LEAD = (
    "The mean corner error of predicted transformations of held-out images, in pixels: lower is better. Ridge regression reads "
    "frozen features; the predictors in grey see no image."
)


def equivariance_figures(runs: Sequence[CollectedRun]) -> Section:
    """The figures of `avt evaluate`."""
    return Section(40, "Equivariance", LEAD, side_by_side(runs, _evaluation))


def stored_evaluation(run: CollectedRun) -> dict[str, Any]:
    """The content of evaluate.json.

    Raises:
        AvtError: if it is missing, or of other weights.
    """
    if "evaluate.json" not in run.results:
        raise AvtError(f"no evaluation of these weights is stored. Measure them with `avt evaluate {run.summary.run}`")
    return run.results["evaluate.json"]


def _evaluation(run: CollectedRun) -> list[Block]:
    found = stored_evaluation(run)
    fits = [("decoder", found["mace_px"], None)]
    fits += [(f"ridge on {ridge['layer']}", ridge["mace_px"], ridge["random"]["mace_px"]) for ridge in found["ridge"]]
    bars = [
        Bar(label, value, f"{value:.1f} px", baseline, "" if baseline is None else f"{baseline:.1f} px")
        for label, value, baseline in fits
        if value is not None
    ]
    blind = {title: found["baselines"].get(name, {}).get("mace_px") for name, title in BASELINES.items()}
    bars += [Bar(title, value, f"{value:.1f} px", own=False) for title, value in blind.items() if value is not None]
    scores: dict[str, dict[str, float | None]] = {f"ridge on {ridge['layer']}": _scores(ridge) for ridge in found["ridge"]}
    if found["r2_per_parameter"] is not None:
        scores = {"decoder": _scores(found), **scores}
    names = [*found["protocol"]["target"], "pooled"]
    rows = [[name, *(figure_text(own.get(name), 3) for own in scores.values())] for name in names]
    title = f"Corner error on {found['count']} images of {found['dataset']}"
    top = max((max(bar.value, bar.baseline or 0) for bar in bars), default=1.0)
    shown: list[Block] = [Bars(title, bars, top, "random weights", found["protocol"])] if bars else []
    return [*shown, Fold("R² of each component of the target", [Table(["", *scores], rows)])]


def _scores(fit: dict[str, Any]) -> dict[str, float | None]:
    return {**(fit["r2_per_parameter"] or {}), "pooled": fit["r2"]}
