"""What a report shows of a run: the files of its folder, and one pass over some of its held-out images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent, ignore
from avtcli.reporting.held_out_pass import HeldOutPass, read_held_out
from avtcli.reporting.run_summary import RunSummary, stored_results, summarize_run
from avtcli.storage.metrics_log import MetricsLog
from avtcli.storage.run_folders import read_env

WITH_IMAGES: Final = 4
"""Runs of one report whose images are shown, so that the page stays small."""


@dataclass(frozen=True)
class CollectedRun:
    """A run of a report.

    Attributes:
        name: of the folder; the whole path where runs of one report share it.
        index: its place in the report, from 0.
        summary: settings and figures.
        lines: those of metrics.jsonl.
        results: what commands stored about the newest weights, by file name.
        environment: the content of env.json; empty if it is missing.
        held_out: the pass over held-out images, or why there is none.
    """

    name: str
    index: int
    summary: RunSummary
    lines: list[dict[str, Any]]
    results: dict[str, dict[str, Any]]
    environment: dict[str, Any]
    held_out: HeldOutPass | str

    @property
    def images(self) -> HeldOutPass:
        """The pass over held-out images.

        Raises:
            AvtError: with the reason, where there is none.
        """
        if isinstance(self.held_out, str):
            raise AvtError(self.held_out)
        return self.held_out


def collect_runs(runs: Sequence[Path], *, on_event: OnEvent) -> list[CollectedRun]:
    """Collect run folders; one that is given twice counts once.

    Raises:
        AvtError: if one is no run folder, or its settings cannot be read.
    """
    unique = list({run.resolve(): run for run in runs}.values())
    summaries = [summarize_run(run, on_event=on_event) for run in unique]  # refuses all before any image is read
    names = [run.resolve().name for run in unique]
    return [
        CollectedRun(
            name=name if names.count(name) == 1 else str(summary.run),
            index=index,
            summary=summary,
            lines=MetricsLog(summary.run / "metrics.jsonl").read(on_event=on_event),
            results={path.name: found for path, found in stored_results(summary.run, summary.step, on_event=ignore)},
            environment=read_env(summary.run),
            held_out=_held_out(summary.run, index, on_event=on_event),
        )
        for index, (name, summary) in enumerate(zip(names, summaries, strict=True))
    ]


def _held_out(run: Path, index: int, *, on_event: OnEvent) -> HeldOutPass | str:
    if index >= WITH_IMAGES:
        return f"images are shown of the first {WITH_IMAGES} runs"
    try:
        return read_held_out(run, on_event=on_event)
    except AvtError as error:
        on_event(Notice(f"{run}: images are left out. {error}"))
        return str(error)
