"""The report on runs: one HTML file that needs no network and runs no script."""

import html
import importlib.util
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent, Saved, ignore
from avtcli.storage.files import refuse_existing, refuse_unwritable, write_file
from avtcli.storage.run_folders import find_run, names_newest, newest_run

REPORT: Final = "report.html"


@dataclass(frozen=True)
class Report:
    """Result of `avt report`.

    Attributes:
        file: path of the page.
        bytes: its size.
        runs: paths of the runs.
        sections: names of the sections that it has, in their order.
        left_out: why it lacks others, by name.
        seconds: that it took.
    """

    file: str
    bytes: int
    runs: list[str]
    sections: list[str]
    left_out: dict[str, str]
    seconds: float


def write_report(runs: Sequence[Path | None], *, out: Path | None, on_event: OnEvent = ignore) -> Report:
    """Write one page on runs: curves, decoded pairs, figures of stored probes and evaluations, neighbours and settings.

    Sections whose data are not there are left out, and the page says why.

    Args:
        runs: run folders, see `find_run`; none means the newest run. A run that is given twice counts once.
        out: the file. By default report.html in the folder of the only run, where that of an earlier report is replaced, or in
            the current folder for several.
        on_event: receiver of notices and progress.

    Raises:
        AvtError: if a package of the extra `report` is not installed, one of the runs is no run folder, or `out` exists.
        RunFailedError: if the file cannot be written.
    """
    began = time.monotonic()
    for package in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise AvtError(f"A report needs {package}, which is not installed: `pip install 'avtcli[report]'`.")
    import jinja2

    from avtcli.reporting.collected_run import collect_runs
    from avtcli.reporting.sections import build_sections

    asked = runs or [None]
    found = [find_run(run) for run in asked]
    if any(map(names_newest, asked)):
        on_event(Notice(f"using the newest run, {newest_run()}"))
    alone = len({run.resolve() for run in found}) == 1
    path = out or (found[0] / REPORT if alone else Path(REPORT))
    if out is None and alone:
        refuse_unwritable(path)
    else:
        refuse_existing(path)
    collected = collect_runs(found, on_event=on_event)
    sections, left_out = build_sections(collected)
    loader = jinja2.PackageLoader("avtcli.reporting")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"kind": _kind, "text": _text, "prose": _prose}
    page = environment.get_template(f"{REPORT}.j2").render(
        runs=collected, sections=sections, left_out=left_out, made=datetime.now().strftime("%Y-%m-%d %H:%M")
    )
    content = page.encode("utf-8", "backslashreplace")
    write_file(path, content, replace=out is None and alone)
    on_event(Saved(path))
    names = [str(run.summary.run) for run in collected]
    return Report(str(path), len(content), names, [*sections], left_out, round(time.monotonic() - began, 1))


def _kind(block: object) -> str:
    return type(block).__name__


def _prose(text: str) -> str:
    """Escape text, and mark what stands between backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))


def _text(value: Any) -> str:
    from avtcli.reporting.sections._blocks import short_text

    return short_text(value)
