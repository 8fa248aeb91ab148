"""Runs side by side: settings that differ, and figures."""

from collections.abc import Sequence

from avtcli.reporting.collected_run import CollectedRun
from avtcli.reporting.comparison import compare_summaries
from avtcli.reporting.comparison_rows import STAR, figure_rows, setting_rows
from avtcli.reporting.sections._blocks import Section, Table

LEAD = "Runs that differ by their seed alone are one row: mean ± standard deviation. " + STAR


def comparison_tables(runs: Sequence[CollectedRun]) -> Section | None:
    """What `avt compare` shows of several runs."""
    if len(runs) == 1:
        return None
    result = compare_summaries([run.summary for run in runs])
    header, rows = setting_rows(result)
    names, *settings = zip(header, *rows, strict=True)  # a column a group: settings may be many
    tables = [Table(names, settings, title="Settings that differ", figures=False)]
    tables += [Table(["", *columns], rows, title=title) for title, columns, rows in figure_rows(result)]
    return Section(10, "Comparison", LEAD, tables)
