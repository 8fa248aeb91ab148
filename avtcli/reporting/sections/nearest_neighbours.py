"""Nearest neighbours of some images."""

from collections.abc import Sequence

from avtcli.metrics.knn import nearest
from avtcli.reporting.collected_run import CollectedRun
from avtcli.reporting.held_out_pass import HeldOutPass
from avtcli.reporting.sections._blocks import Block, Neighbour, Neighbours, Section, side_by_side
from avtcli.reporting.sections._pictures import image_uri
from avtcli.seeding import subset

QUERIES, NEIGHBOURS = 8, 7
LEAD = (
    "Images, drawn at random, and those of the others whose codes are nearest by cosine similarity, the nearest first. Class "
    "names are for the reader: the network never saw one. Neighbours of another class are marked."
)


def nearest_neighbours(runs: Sequence[CollectedRun]) -> Section:
    """What the code takes for similar."""
    return Section(70, "Neighbours", LEAD, side_by_side(runs, _neighbours))


def _neighbours(run: CollectedRun) -> list[Block]:
    held_out = run.images
    codes, rows = held_out.codes, subset(len(held_out.codes), QUERIES, "report neighbours")
    _, found = nearest(codes, codes[rows], min(NEIGHBOURS + 1, len(codes)))
    return [
        Neighbours(
            [
                (_neighbour(held_out, query, None), [_neighbour(held_out, i, query) for i in near if i != query][:NEIGHBOURS])
                for query, near in zip(rows.tolist(), found.tolist(), strict=True)
            ]
        )
    ]


def _neighbour(held_out: HeldOutPass, index: int, query: int | None) -> Neighbour:
    labels = held_out.labels
    label = -1 if labels is None else int(labels[index])
    same = None if labels is None or query is None or label < 0 else label == int(labels[query])
    return Neighbour(image_uri(held_out.images[index], side=96), held_out.classes[label] if label >= 0 else "", same)
