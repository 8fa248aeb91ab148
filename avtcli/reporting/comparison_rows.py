"""Tables of a comparison: settings that differ and figures, a row a group."""

from collections.abc import Iterator
from typing import Any

from avtcli.config.value_text import value_text
from avtcli.reporting.comparison import GroupFigure, RunComparison, RunGroup
from avtcli.reporting.run_summary import Better, better

TITLES = {
    "training": "training: loss of the last epoch, last evaluation",
    "probe": "probe: top-1 %",
    "evaluate": "evaluate",
}


def _name(group: RunGroup) -> str:
    return group.runs[0] + (f" +{len(group.runs) - 1}" if len(group.runs) > 1 else "")


def setting_rows(result: RunComparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one a group, of the settings in which the groups differ."""
    rows = []
    for group in result.groups:
        seeds, steps = (", ".join(map(str, values)) for values in (group.seeds, sorted({*group.steps})))
        rows.append([_name(group), seeds, steps, *map(value_text, group.settings.values())])
    return ["run", "seed", "step", *result.differing], rows


def figure_rows(result: RunComparison) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield title, columns and rows, the rows of the groups with such figures, for each section and conditions."""
    figures = [figure for group in result.groups for figure in group.figures]
    kinds = dict.fromkeys(_kind(figure) for figure in figures)
    for kind in sorted(kinds, key=lambda kind: [*TITLES].index(kind[0])):  # stable
        names = list(dict.fromkeys(figure.name for figure in figures if _kind(figure) == kind))
        rows = []
        for group in result.groups:
            own = {figure.name: figure for figure in group.figures if _kind(figure) == kind}
            if own:
                rows.append([_name(group), *(_text(own.get(name), of=len(group.runs)) for name in names)])
        _mark_best([better(kind[0], name) for name in names], rows)
        yield ", ".join([TITLES[kind[0]], *(f"{name}={value}" for name, value in kind[1:])]), names, rows


def _mark_best(directions: list[Better], rows: list[list[str]]) -> None:
    """Mark the best figure of each column by a star, where there are several."""
    for column, direction in enumerate(directions, 1):
        means = {i: float(row[column].split(" ")[0]) for i, row in enumerate(rows) if row[column] != "-"}
        if len(means) > 1 and len({*means.values()}) > 1 and direction is not None:
            best = (min if direction == "lower" else max)(means.values())
            for i, row in enumerate(rows):
                row[column] += "*" if means.get(i) == best else " "


def _kind(figure: GroupFigure) -> tuple[Any, ...]:
    return figure.section, *figure.conditions.items()


def _text(figure: GroupFigure | None, *, of: int) -> str:
    if figure is None:
        return "-"
    digits = 3 if abs(figure.mean) < 10 else 2
    text = f"{figure.mean:.{digits}f}" + ("" if figure.std is None else f" ± {figure.std:.{digits}f}")
    return text if figure.runs == of else f"{text} ({figure.runs} of {of})"
