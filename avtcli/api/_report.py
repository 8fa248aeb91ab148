"""`avtcli.report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avtcli.api._calling import calling, path_of, run_of

if TYPE_CHECKING:
    from avtcli.reporting.report import Report


def report(
    runs: str | Path | Sequence[str | Path] = "last",
    *,
    out: str | Path | None = None,
    progress: bool = False,
) -> "Report":
    """Write one HTML page on runs, as `avt report` does.

    Args:
        runs: a run folder, or several to lay side by side; "last" is the newest run under ./runs.
        out: the file. Default: report.html in the folder of the only run, or in the current folder for several.
        progress: show progress and notices on stderr, as the command line does.

    Returns:
        The file, its sections, and why it lacks others; what `avt report --json` prints.

    Raises:
        AvtError: if the extra `report` is not installed, one of the runs is no run folder, or `out` exists.
        RunFailedError: an AvtError, if the file cannot be written.
    """
    from avtcli.reporting.report import write_report

    named = runs if isinstance(runs, Sequence) and not isinstance(runs, str) else [runs]
    with calling(progress) as on_event:
        return write_report([run_of(run) for run in named], out=path_of(out), on_event=on_event)
