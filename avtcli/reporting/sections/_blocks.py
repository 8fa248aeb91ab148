"""What sections consist of; the template draws each kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from avtcli.config.value_text import value_text
from avtcli.errors import AvtError
from avtcli.reporting.collected_run import CollectedRun

LONGEST = 300
"""Characters of a value that are shown."""
MOST_ROWS = 100
"""Rows of a table that are shown."""


@dataclass(frozen=True)
class Section:
    """A section of the page; sections are in the order of their place."""

    place: int
    title: str
    lead: str
    blocks: "Sequence[Block]"


@dataclass(frozen=True)
class Tiles:
    """Figures in large type: label, value and a note each."""

    tiles: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Charts:
    """Drawings next to each other: title, SVG and note of each; `legend` gives the CSS class and name of each colour."""

    charts: list[tuple[str, str, str]]
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Bar:
    """A figure next to that of a baseline, if it has one; `own` is false for a predictor that is none of the run."""

    label: str
    value: float
    text: str
    baseline: float | None = None
    baseline_text: str = ""
    own: bool = True


@dataclass(frozen=True)
class Bars:
    """Bars from 0 to `top`; `baseline` names the baseline, and the protocol is folded in."""

    title: str
    bars: list[Bar]
    top: float
    baseline: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table: words in the first column, and the names of the columns that hold figures."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    figures: bool = True


@dataclass(frozen=True)
class Facts:
    """Labels and values."""

    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Command:
    """A command line."""

    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that are shown on request."""

    title: str
    blocks: "Sequence[Block]"


@dataclass(frozen=True)
class Grid:
    """Blocks next to each other, where there is room."""

    blocks: "Sequence[Block]"


@dataclass(frozen=True)
class PairFigure:
    """Data URIs of an image, its transformed version and the one decoded; corners as points of an SVG; the error in px."""

    original: str
    transformed: str
    decoded: str
    true: list[tuple[float, float]]
    predicted: list[tuple[float, float]]
    error: str


@dataclass(frozen=True)
class Pairs:
    """Decoded pairs of images of (height, width) px, each shown with a margin, a fraction of its sides."""

    size: tuple[int, int]
    margin: float
    pairs: list[PairFigure]


@dataclass(frozen=True)
class Neighbour:
    """An image with the name of its class; `same` is none where classes are not known."""

    image: str
    label: str
    same: bool | None


@dataclass(frozen=True)
class Neighbours:
    """Images, each with its nearest ones."""

    rows: list[tuple[Neighbour, list[Neighbour]]]


@dataclass(frozen=True)
class Mosaic:
    """Small pictures."""

    images: list[str]


@dataclass(frozen=True)
class Column:
    """The blocks of one run, or why it has none."""

    run: CollectedRun
    blocks: "Sequence[Block]"
    left_out: str = ""


@dataclass(frozen=True)
class Columns:
    """Runs next to each other."""

    columns: list[Column]


Block = Tiles | Charts | Bars | Table | Facts | Command | Fold | Grid | Pairs | Neighbours | Mosaic | Columns


def side_by_side(runs: Sequence[CollectedRun], build: "Callable[[CollectedRun], Sequence[Block]]") -> "Sequence[Block]":
    """Build the blocks of each run, next to each other where there are several; none where no run has any.

    Raises:
        AvtError: with the reason of the first, if no run has the data.
    """
    columns, reasons = [], []
    for run in runs:
        try:
            columns.append(Column(run, build(run)))
        except AvtError as error:
            reasons.append(error)
            columns.append(Column(run, [], str(error)))
    if len(reasons) == len(runs):
        raise reasons[0]
    if len(runs) == 1:
        return columns[0].blocks
    shown = [column for column in columns if column.blocks or column.left_out]
    return [Columns(shown)] if any(column.blocks for column in columns) else []


def figure_text(value: float | None, digits: int = 1) -> str:
    """A figure with a number of digits after the point; a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def short_text(value: Any) -> str:
    """A setting or fact as text, shortened."""
    text = value_text(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
