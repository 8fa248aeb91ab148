"""What the decoder makes of held-out images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from avtcli.errors import AvtError
from avtcli.reporting.collected_run import CollectedRun
from avtcli.reporting.sections._blocks import Block, PairFigure, Pairs, Section, side_by_side
from avtcli.reporting.sections._pictures import image_uri

LARGE = 160
"""Pixels of the longer side of a large image."""
MOST = 6
"""Pairs of each run where there are several."""
LEAD = (
    "Held-out images, drawn at random. The network sees the first two pictures of each and decodes the transformation between "
    "them; the third is the original under the decoded transformation, so that a perfect decoder's is the second. Outlines in "
    "the first: the part that the transformed image shows, in truth and as decoded, each with a dot at its top left corner. "
    "The figure in px is the mean distance between the corners of both."
)


def decoded_pairs(runs: Sequence[CollectedRun]) -> Section:
    """Original, transformed image, and the original under the decoded transformation."""
    return Section(30, "Decoded transformations", LEAD, side_by_side(runs, lambda run: _pairs(run, several=len(runs) > 1)))


def _pairs(run: CollectedRun, *, several: bool) -> list[Block]:
    pairs = run.images.pairs
    if isinstance(pairs, str):
        raise AvtError(pairs)
    shown = range(min(len(pairs.errors), MOST) if several else len(pairs.errors))
    figures = [
        PairFigure(
            original=image_uri(pairs.original[i], side=LARGE),
            transformed=image_uri(pairs.transformed[i], side=LARGE),
            decoded=image_uri(pairs.decoded[i], side=LARGE),
            true=_points(pairs.true[i]),
            predicted=_points(pairs.predicted[i]),
            error=f"{float(pairs.errors[i]):.1f} px" if pairs.errors[i].isfinite() else "not finite",
        )
        for i in shown
    ]
    height, width = pairs.original.shape[2:]
    beyond = max(0.0, *(pairs.true / torch.tensor([width, height]) - 0.5).abs().sub(0.5).flatten().tolist())
    return [Pairs((height, width), round(min(beyond + 0.04, 0.45), 2), figures)]


def _points(corners: Tensor) -> list[tuple[float, float]]:
    return [(round(x, 2), round(y, 2)) for x, y in corners.tolist()] if corners.isfinite().all() else []
