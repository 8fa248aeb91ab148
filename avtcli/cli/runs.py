"""`avt runs`."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from avtcli.cli.console import say, say_json, say_table
from avtcli.cli.layout import shortened, total_width, width_of
from avtcli.cli.options import Json
from avtcli.reporting.run_list import ListedRun, describe_runs
from avtcli.storage.run_folders import RUNS

ALWAYS = ("run", "state")
IF_ROOM = ("MACE px", "k-NN %", "probe %", "step", "data", "backbone", "objective", "transform", "seed")
"""The columns that a narrow terminal shows as far as there is room, in this order."""


def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the run folders.")] = RUNS,
    as_json: Json = False,
) -> None:
    """List runs with their state and best figures.

    A run is running, stopped (`avt pretrain --resume` continues it), complete, failed or damaged. MACE and k-NN are those of
    its last evaluation, the probe is the best of its probes, with the pooling that held-out images prefer. The newest run comes
    last and is named below; in ./runs it is the one that commands take when none is given. A narrow terminal shows fewer
    columns, and says which are left out.

    Example: `avt runs`
    """
    found = [] if folder == RUNS and not folder.exists() else describe_runs(folder)
    if as_json:
        say_json([asdict(run) for run in found])
    elif not found:
        say(f"There is no run under {folder}. Make one with `avt pretrain`.")
    else:
        header, rows, left_out = _fitted([_row(run) for run in found])
        say_table(header, rows)
        taken = ", taken where no run is given" if folder == RUNS else ""
        notes = [f"newest: {run.name}{taken}" for run in found if run.last]
        notes += [f"no room here for {', '.join(left_out)}: a wider terminal or --json shows all"] if left_out else []
        say(*(["", *notes] if notes else []))
        for run in found:
            if run.problem is not None:
                say("", f"{run.name} is {run.state}: {run.problem}")


def _row(run: ListedRun) -> dict[str, str]:
    probe = run.probe
    return {
        "run": run.name,
        "state": run.state,
        "step": f"{_text(run.step)}/{_text(run.steps)}",
        "MACE px": _text(run.mace_px, ".2f"),
        "k-NN %": _text(run.knn_top1, ".1f"),
        "probe %": "-" if probe is None else f"{probe.top1:.1f} {probe.name}",
        "data": run.data or "-",
        "backbone": run.backbone or "-",
        "objective": run.objective or "-",
        "transform": run.transform or "-",
        "seed": _text(run.seed),
    }


def _text(value: float | None, form: str = "") -> str:
    return "-" if value is None else f"{value:{form}}"


def _fitted(rows: list[Mapping[str, str]]) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the header, the rows, and the columns for which there is no room; a name that is too long is cut."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    room, kept = width_of(sys.stdout) or sys.maxsize, {*ALWAYS}
    for name in IF_ROOM:
        if total_width(widths[column] for column in {*kept, name}) <= room:
            kept.add(name)
    header = [name for name in widths if name in kept]
    longest = max(room - total_width(widths[name] for name in header) + widths["run"], 8)
    cells = [{**row, "run": shortened(row["run"], longest)} for row in rows]
    return header, [[row[name] for name in header] for row in cells], [name for name in widths if name not in kept]
