"""Filters of the first convolution."""

from collections.abc import Sequence

from avtcli.errors import AvtError
from avtcli.reporting.collected_run import CollectedRun
from avtcli.reporting.sections._blocks import Block, Mosaic, Section, side_by_side
from avtcli.reporting.sections._pictures import image_uri

MOST = 96
LEAD = "The weights of the first convolution, each filter scaled to its largest weight; mid-grey is 0."


def first_filters(runs: Sequence[CollectedRun]) -> Section:
    """The filters as images."""
    return Section(90, "Filters", LEAD, side_by_side(runs, _filters))


def _filters(run: CollectedRun) -> list[Block]:
    filters = run.images.filters
    if filters is None:
        raise AvtError("its first convolution is none that reads grey or RGB images with filters larger than 1x1")
    largest = filters.abs().amax((1, 2, 3), keepdim=True)
    return [Mosaic([image_uri(image) for image in (0.5 + filters / (2 * largest.clamp(min=1e-12)))[:MOST]])]
