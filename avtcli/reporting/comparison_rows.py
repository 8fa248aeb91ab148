"""Tables of a comparison: settings that differ and figures, a row a group."""

from collections.abc import Collection, Iterator, Sequence
from itertools import combinations
from math import hypot
from pathlib import Path
from typing import Any, Final

from avtcli.config.components import FEW_IMAGES, flags_of
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.value_text import value_text
from avtcli.reporting.comparison import GroupFigure, RunComparison, RunGroup
from avtcli.reporting.run_summary import EVALUATION, TRAINING, Better

TITLES: Final = {
    "training": "training: loss of the last epoch, last evaluation",
    "probe": "probe: top-1 %",
    "evaluate": "evaluate",
}
APART: Final = ("dataset", "train_images", "shots", "recipe", "epochs", "finetune", "calibrated", "count")
"""Conditions of figures that stand in tables of their own."""
OPTIONS: Final = {"schedule.rate": "--lr", "recipe": "--recipe"}
"""Options of settings that are not called as their fields."""
LONGEST: Final = 40
"""Characters of the names of runs in a row of figures."""
STAR: Final = (
    "* the best of its column; where there are several seeds, by more than their deviation. None where data, size, "
    f"transformation, target, loss or protocol differ, or of fewer than {FEW_IMAGES} images."
)


def _name(group: RunGroup, longest: int | None = None) -> str:
    """The run, or the number of runs and the names for which there is room."""
    if len(group.runs) == 1:
        return group.runs[0]
    names = [Path(run).name for run in group.runs]
    shown = names
    while longest is not None and len(shown) > 1 and len(", ".join(shown)) > longest:
        shown = shown[:-1]
    return f"{len(names)} runs: {', '.join([*shown, *(['...'] if len(shown) < len(names) else [])])}"


def setting_rows(result: RunComparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one a group, of the settings in which the groups differ."""
    rows = []
    for group in result.groups:
        seeds, steps = (", ".join(map(str, values)) for values in (group.seeds, sorted({*group.steps})))
        rows.append([_name(group), seeds, steps, *map(value_text, group.settings.values())])
    return ["run", "seed", "step", *map(_title, result.differing)], rows


def _title(setting: str) -> str:
    """A setting with the option that gives it, if there is one besides `-o`."""
    field, flags = setting.removesuffix(".name"), flags_of(PretrainConfig)
    option = OPTIONS.get(setting) or (flags[field].option(field) if field in flags else None)
    return f"{setting} ({option})" if option else setting


def figure_rows(result: RunComparison) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield title, columns and rows, the rows of the groups with such figures, for each section and conditions.

    A star marks the best figure of a column, see `STAR`.
    """
    figures, apart = [figure for group in result.groups for figure in group.figures], _apart(result)
    kinds = dict.fromkeys(_kind(figure, apart) for figure in figures)
    for kind in sorted(kinds, key=lambda kind: [*TITLES].index(kind[0])):  # stable
        names = list(dict.fromkeys(figure.name for figure in figures if _kind(figure, apart) == kind))
        found = [(group, {f.name: f for f in group.figures if _kind(f, apart) == kind}) for group in result.groups]
        found = [(group, own) for group, own in found if own]
        columns = [_column([(own.get(name), len(group.runs)) for group, own in found]) for name in names]
        rows = [[_name(group, LONGEST), *cells] for (group, _), *cells in zip(found, *columns, strict=True)]
        yield ", ".join([TITLES[kind[0]], *(f"{name}={value}" for name, value in kind[1:])]), names, rows


def _better(figure: GroupFigure) -> Better:
    if figure.section == "probe":
        return "higher"
    return (TRAINING if figure.section == "training" else EVALUATION)[figure.name.split(" ")[-1]]


def _column(figures: Sequence[tuple[GroupFigure | None, int]]) -> list[str]:
    """The cells of a column, from each group's figure and number of runs."""
    best = _best([figure for figure, _ in figures if figure is not None])
    marks = ["" if best is None or figure is None else "*" if figure is best else " " for figure, _ in figures]
    return [_text(figure, of=of) + mark for (figure, of), mark in zip(figures, marks, strict=True)]


def _best(figures: Sequence[GroupFigure]) -> GroupFigure | None:
    """The figure that leads all others by more than the deviation of the difference.

    None where some are not comparable, or of few images.
    """
    direction, conditions = _better(figures[0]), figures[0].conditions
    if direction is None or len(figures) < 2 or any(figure.conditions != conditions for figure in figures):
        return None
    if conditions.get("test_images", conditions.get("count", FEW_IMAGES)) < FEW_IMAGES:
        return None
    best, *others = sorted(figures, key=lambda figure: figure.mean, reverse=direction == "higher")
    leads = all(abs(_shown(best) - _shown(other)) > hypot(best.std or 0, other.std or 0) for other in others)
    return best if leads else None


def _apart(result: RunComparison) -> set[str]:
    """The conditions that set tables apart: `APART`, and those by which two figures of one name in a group differ."""
    apart = {*APART}
    for group in result.groups:
        for a, b in combinations(group.figures, 2):
            if a.name == b.name and _kind(a, apart) == _kind(b, apart):
                apart |= {name for name in {**a.conditions, **b.conditions} if a.conditions.get(name) != b.conditions.get(name)}
    return apart


def _kind(figure: GroupFigure, apart: Collection[str]) -> tuple[Any, ...]:
    return figure.section, *((name, value) for name, value in figure.conditions.items() if name in apart)


def _digits(figure: GroupFigure) -> int:
    return 3 if abs(figure.mean) < 10 else 2


def _shown(figure: GroupFigure) -> float:
    return round(figure.mean, _digits(figure))


def _text(figure: GroupFigure | None, *, of: int) -> str:
    if figure is None:
        return "-"
    digits = _digits(figure)
    text = f"{figure.mean:.{digits}f}" + ("" if figure.std is None else f" ± {figure.std:.{digits}f}")
    return text if figure.runs == of else f"{text} ({figure.runs} of {of})"
