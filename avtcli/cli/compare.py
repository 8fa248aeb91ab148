"""`avt compare`."""

from pathlib import Path
from typing import Annotated

import typer

from avtcli.cli.completion import complete_run
from avtcli.cli.console import reporting, say, say_json, say_table
from avtcli.cli.options import Json
from avtcli.reporting.comparison import compare_runs
from avtcli.reporting.comparison_rows import STAR, figure_rows, setting_rows
from avtcli.storage.run_folders import find_run


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.", autocompletion=complete_run)],
    as_json: Json = False,
) -> None:
    """Compare the settings and figures of runs.

    Shows the settings that differ, the last figures of training, and what `avt probe` and `avt evaluate` stored in the run's
    folder. Runs that differ by their seed alone are one row: mean ± standard deviation; for one run that over the seeds of its
    probe. Of several poolings of a layer the one that held-out training images prefer is shown. A star marks the best figure of
    a column, if all are of the same data, size and protocol; where there are several seeds, by more than their deviation.

    Example: `avt compare runs/*`
    """
    with reporting() as on_event:
        result = compare_runs([find_run(run) for run in runs], on_event=on_event)
    if as_json:
        say_json(result)
        return
    say_table(*setting_rows(result))
    for title, columns, rows in figure_rows(result):
        say("", title)
        say_table(["", *columns], rows)
    if len(result.groups) > 1:
        say("", STAR)
