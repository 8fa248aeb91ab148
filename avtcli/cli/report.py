"""`avt report`."""

from pathlib import Path
from typing import Annotated

import typer

from avtcli.cli.completion import complete_run
from avtcli.cli.console import reporting, say, say_json
from avtcli.cli.options import Json, option


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN...", help="Run folders. Default: the newest run.", autocompletion=complete_run),
    ] = None,
    out: Annotated[
        Path | None,
        option("File to write. Default: report.html in the run's folder; of several runs, here.", "FILE.html", panel="Output"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page on runs: curves, decoded images, probes, settings.

    The page needs no network, so that it can be sent to others. It shows what the run's folder holds, also of `avt probe` and
    `avt evaluate`, and what the network makes of some held-out images. Several runs are shown side by side.

    Example: `avt report`

    Example: `avt report runs/a runs/b --out a-b.html`
    """
    from avtcli.reporting.report import write_report

    with reporting() as on_event:
        result = write_report(runs or [], out=out, on_event=on_event)
    if as_json:
        say_json(result)
        return
    say(f"report  {result.file}  ({result.bytes / 1e6:.2g} MB, {result.seconds:.0f} s)")
    names = dict[str, list[str]]()
    for name, reason in result.left_out.items():
        names.setdefault(reason, []).append(name.replace("_", " "))
    say(*(f"without {', '.join(missing)}: {reason}" for reason, missing in names.items()))
