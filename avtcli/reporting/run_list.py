"""A list of runs: what each is, how far it came, and its best figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from avtcli.errors import AvtError, one_line
from avtcli.events import ignore
from avtcli.reporting.run_summary import DAMAGES, BestProbe, FigureKey, RunSummary, best_probe, summarize_run
from avtcli.storage.run_folders import has_lost_checkpoints, is_run, is_running, newest_run, read_env, started

RunState = Literal["running", "stopped", "complete", "failed", "damaged"]


@dataclass(frozen=True)
class ListedRun:
    """A run; what its folder does not state is none.

    Attributes:
        run: its folder.
        name: the folder's name.
        data: of its settings, as the next four.
        step: of its newest checkpoint.
        steps: at which it is complete.
        state: running while a process holds its lock; stopped may be resumed; failed ended with an error; damaged has no
            readable settings, or checkpoints of which none has all of its files.
        problem: why it failed or is damaged.
        mace_px: corner error of its last evaluation.
        knn_top1: k-NN accuracy of its last evaluation in percent.
        probe: its best probe.
        started: when it was started or resumed last, UTC.
        last: whether it is the newest in its folder that has a checkpoint.
    """

    run: str
    name: str
    data: str | None
    backbone: str | None
    objective: str | None
    transform: str | None
    seed: int | None
    step: int | None
    steps: int | None
    state: RunState
    problem: str | None
    mace_px: float | None
    knn_top1: float | None
    probe: BestProbe | None
    started: str
    last: bool


def describe_runs(folder: Path) -> list[ListedRun]:
    """Describe the runs in a folder, the newest last; other folders are passed over. No weights are read.

    Raises:
        AvtError: if there is no such folder.
    """
    if not folder.is_dir():
        raise AvtError(f"{folder} is no folder. Give the one that holds the run folders.")
    found = sorted((started(path), path) for path in folder.iterdir() if is_run(path))
    try:
        last = newest_run(folder)
    except AvtError:
        last = None
    return [_describe(path, since, last=path == last) for since, path in found]


def _describe(run: Path, since: float, *, last: bool) -> ListedRun:
    env, problem = read_env(run), None
    try:
        summary = summarize_run(run, losses=False, on_event=ignore)
    except (AvtError, OSError, *DAMAGES) as error:
        problem = str(error) if isinstance(error, AvtError) else one_line(error)
        summary = RunSummary(run, 0, False, {}, {}, {}, {})
    if problem is None and has_lost_checkpoints(run):
        problem = "no checkpoint has all of its files"
    state = _state(run, env, summary, damaged=problem is not None)
    if state == "failed":
        problem = str(env["failure"])
    steps = env.get("steps") if type(env.get("steps")) is int else summary.step if summary.complete else None
    return ListedRun(
        run=str(run),
        name=run.name,
        **_settings(summary.settings),
        step=summary.step if summary.settings else None,
        steps=steps,
        state=state,
        problem=problem,
        mace_px=summary.figures.get(FigureKey("training", "mace_px")),
        knn_top1=summary.figures.get(FigureKey("training", "knn_top1")),
        probe=best_probe(summary),
        started=datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds"),
        last=last,
    )


def _state(run: Path, env: Mapping[str, Any], summary: RunSummary, *, damaged: bool) -> RunState:
    if is_running(run, env):
        return "running"
    if damaged:
        return "damaged"
    return "complete" if summary.complete else "failed" if env.get("failure") else "stopped"


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    names = {"data": "dataset", "backbone": "backbone", "objective": "objective", "transform": "transform"}
    return {**{ours: settings.get(f"{name}.name") for ours, name in names.items()}, "seed": settings.get("seed")}
