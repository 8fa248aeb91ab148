"""Whether the decoder's variances are those of its errors."""

from collections.abc import Sequence
from functools import partial

from avtcli.errors import AvtError
from avtcli.evaluation.calibration_picture import plot_calibration
from avtcli.reporting.collected_run import CollectedRun
from avtcli.reporting.sections._blocks import Block, Charts, Grid, Section, Table, figure_text, side_by_side
from avtcli.reporting.sections._pictures import CLASSES, draw
from avtcli.reporting.sections.equivariance_figures import stored_evaluation

LEAD = (
    "The share of targets inside of the decoder's central intervals. A calibrated decoder follows the dashed line; above it "
    "the stated variances are too large, below it too small. The temperature is the factor of all variances that fits best "
    "on half of the pairs; the table is of the other half."
)


def decoder_calibration(runs: Sequence[CollectedRun]) -> Section:
    """Observed against nominal coverage."""
    return Section(50, "Calibration", LEAD, side_by_side(runs, _calibration))


def _calibration(run: CollectedRun) -> list[Block]:
    found = stored_evaluation(run)["calibration"]
    if found is None:
        raise AvtError("its decoder has no variance")
    colours = {"axes.prop_cycle": f"cycler('color', {list(CLASSES)!r})"}
    svg = draw(
        partial(plot_calibration, calibration=found), label="Observed against nominal coverage", size=(4.2, 3.2), **colours
    )
    temperature = found["temperature"]
    scaled = {"1 (as trained)": temperature["before"], figure_text(temperature["temperature"], 2): temperature["after"]}
    rows = [
        [name, figure_text(own["calibration_error"], 3), figure_text(own["nll"], 2)]
        for name, own in scaled.items()
        if own is not None
    ]
    return [Grid([Charts([("", svg, "")]), Table(["temperature", "calibration error", "nll, nats"], rows)])]
