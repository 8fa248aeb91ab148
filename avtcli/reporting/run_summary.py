"""The settings and final figures of a run, from its folder; the weights are not read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final, Literal

from avtcli.config.value_text import flat_settings, options_of, value_text
from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent
from avtcli.input_files import TEXT_BYTES, parse_json_object, parse_toml, read_bytes, read_text
from avtcli.storage.metrics_log import MetricsLog
from avtcli.storage.run_folders import is_run

DAMAGES: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What reading a file raises that has other fields or values than are written."""

Better = Literal["lower", "higher"] | None
"""Which of two figures is the better one; none where neither is, as for a check of collapse."""

TRAINING: Final[dict[str, Better]] = {
    "loss": "lower",
    "mace_px": "lower",
    "knn_top1": "higher",
    "rankme": None,
    "code_std": None,
}
"""The mean loss of the last epoch, and figures of the last evaluation during training."""
EVALUATION: Final[dict[str, Better]] = {
    "mace_px": "lower",
    "right_turns": "higher",
    "mace_px_right_turn": "lower",
    "r2": "higher",
    "nll": "lower",
    "accuracy": "higher",
    "mrr": "higher",
    "calibration_error": "lower",
    "temperature": None,
}
"""Figures of evaluate.json; a ridge has an r2 too."""
PROBE_CONDITIONS: Final = (
    *("dataset", "train_images", "test_images", "shots", "recipe", "epochs", "finetune", "calibrated", "pool_size", "samples"),
    *("resize", "crop", "augmentation", "fraction", "options", "optimizer", "schedule", "batch_size", "rates"),
)
EVALUATE_CONDITIONS: Final = ("dataset", "count", "resize", "crop", "transform", "calibrated")
WITHOUT_TARGET: Final = ("mace_px", "right_turns", "mace_px_right_turn")
"""Figures that do not depend on what the decoder predicts of a transformation."""
BASELINES: Final = {"rotation_oracle": "90-degree rotation oracle", "constant": "constant", "identity": "identity"}
"""Titles of the predictors that see no image."""


@dataclass(frozen=True)
class FigureKey:
    """What a figure is of.

    Attributes:
        section: training, probe or evaluate.
        name: of the figure, with its layer and head.
        conditions: of the protocol of a probe or evaluation; figures under other conditions are not comparable.
    """

    section: str
    name: str
    conditions: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class RunSummary:
    """A run: its settings by dotted name, and its figures, those of its newest checkpoint where they need weights.

    `complete` is false for a run that has not reached its last step; `probe_stds` has the standard deviation (n - 1) of figures
    that are means over several seeds of a probe, and `probe_baselines` the means of the same probes on random weights.
    """

    run: Path
    step: int
    complete: bool
    settings: dict[str, Any]
    figures: dict[FigureKey, float]
    probe_stds: dict[FigureKey, float]
    probe_baselines: dict[FigureKey, float]


@dataclass(frozen=True)
class BestProbe:
    """The highest top-1 of a run's probes in percent, a mean over its seeds, as is that of random weights, if measured.

    `name` has layer and head, and `conditions` those of its protocol.
    """

    name: str
    top1: float
    baseline: float | None
    conditions: dict[str, Any]


@dataclass(frozen=True)
class _ProbeFigures:
    """Accuracies of a probe in percent: the mean on held-out training images, top-1 of each seed, the mean of the baseline."""

    held_out: float
    top1: list[float]
    baseline: float | None


def summarize_run(run: Path, *, losses: bool = True, on_event: OnEvent) -> RunSummary:
    """Read a run folder.

    Files that are damaged, or are of other weights than the newest checkpoint's, are left out with a notice.

    Args:
        run: the folder.
        losses: whether the mean loss of the last epoch is among the figures, for which a part of the log is parsed.
        on_event: receives the notices.

    Raises:
        AvtError: if it is no run folder, or its settings cannot be read.
    """
    if not is_run(run):
        raise AvtError(f"{run} is no run folder (it has no folder `checkpoints`). Give folders that `avt pretrain` wrote.")
    settings = flat_settings(parse_toml(read_text(run / "config.toml"), run / "config.toml"))
    steps = [path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*")]
    step = max((int(digits) for digits in steps if digits.isdecimal()), default=0)
    ended: dict[str, Any] = {}
    probes: dict[tuple[FigureKey, str], _ProbeFigures] = {}
    evaluated: dict[FigureKey, float | None] = {}
    for path, content in stored_results(run, step, on_event=on_event):
        try:
            if path.name == "result.json":
                ended = content
            elif path.name == "evaluate.json":
                evaluated = _evaluation_figures(content)
            else:
                probes |= _probe_results(content)
        except DAMAGES:
            on_event(Notice(f"{path} has other fields than this version of avt writes. It is left out."))
    log, evaluations = MetricsLog(run / "metrics.jsonl"), losses or settings.get("eval_every") != 0
    chosen = _chosen_pooling(probes)
    means = {key: fmean(probe.top1) for key, probe in chosen.items()}
    figures = _training_figures(log, ended, losses=losses, evaluations=evaluations) | means | evaluated
    finite = {key: value for key, value in figures.items() if value is not None}
    stds = {key: stdev(probe.top1) for key, probe in chosen.items() if len(probe.top1) > 1}
    baselines = {key: probe.baseline for key, probe in chosen.items() if probe.baseline is not None}
    return RunSummary(run, step, bool(ended), settings, finite, stds, baselines)


def best_probe(summary: RunSummary) -> BestProbe | None:
    """Return the best of a run's probes; none without any."""
    probes = [(top1, key) for key, top1 in summary.figures.items() if key.section == "probe"]
    if not probes:
        return None
    top1, key = max(probes, key=lambda found: found[0])
    return BestProbe(key.name, top1, summary.probe_baselines.get(key), dict(key.conditions))


def stored_results(run: Path, step: int, *, on_event: OnEvent) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield what commands stored in the folder about the newest weights, by path; probes in the order of time."""
    other = []
    for path in (run / "result.json", run / "evaluate.json", *sorted((run / "probes").glob("*.json"))):
        if not path.exists():
            continue
        try:
            content = parse_json_object(read_bytes(path, limit=TEXT_BYTES), path)
        except AvtError as error:
            on_event(Notice(f"{error} It is left out."))
            continue
        if content.get("step", content.get("steps")) == step:
            yield path, content
        else:
            other.append(path.name)
    if other:
        on_event(Notice(f"{run}: {', '.join(other)} left out, of other weights than those of step {step}"))


def _training_figures(
    log: MetricsLog, ended: Mapping[str, Any], *, losses: bool, evaluations: bool
) -> dict[FigureKey, float | None]:
    """The last evaluation but that before training, and where `losses` the mean loss of the last epoch."""
    newest: dict[str, Any] = next(log.newest("eval"), {}) if evaluations else {}
    evaluated: dict[str, Any] = dict(newest["eval"]) if newest.get("epoch") else {}
    figures = {"loss": _last_loss(log) if losses else None, "mace_px": ended.get("mace_px"), **evaluated}
    return {FigureKey("training", name): figures.get(name) for name in TRAINING}


def _last_loss(log: MetricsLog) -> float | None:
    steps = log.newest("loss")
    last = next(steps, None)
    lines = [] if last is None else [last, *takewhile(lambda line: line["epoch"] == last["epoch"], steps)]
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    return fmean(losses) if losses else None


def _probe_results(probe: Mapping[str, Any]) -> dict[tuple[FigureKey, str], _ProbeFigures]:
    """The figures of a probe by what they are of and the pooling."""
    groups, random = (_by_seed(probe["protocol"], probe.get(name) or []) for name in ("results", "baseline"))
    out = {}
    for key, results in groups.items():
        held_out = fmean(-1.0 if result["val_top1"] is None else result["val_top1"] for result in results)
        baseline = fmean(result["top1"] for result in random[key]) if key in random else None
        out[key] = _ProbeFigures(held_out, [float(result["top1"]) for result in results], baseline)
    return out


def _by_seed(protocol: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[tuple[FigureKey, str], list[Any]]:
    """The results, one for each seed, by what they are of and the pooling."""
    out: dict[tuple[FigureKey, str], list[Any]] = {}
    for result in results:
        out.setdefault((_probe_key(protocol, result), result["pool"]), []).append(result)
    return out


def _chosen_pooling(probes: Mapping[tuple[FigureKey, str], _ProbeFigures]) -> dict[FigureKey, _ProbeFigures]:
    """The figures by layer and head, of the pooling that the held-out images prefer."""
    best: dict[FigureKey, _ProbeFigures] = {}
    for (key, _), probe in probes.items():
        if key not in best or probe.held_out > best[key].held_out:
            best[key] = probe
    return best


def _probe_key(protocol: Mapping[str, Any], result: Mapping[str, Any]) -> FigureKey:
    options = options_of(protocol.get("head"))
    sides, calibrated = protocol.get("pool_size") or {}, bool(protocol.get("calibrated"))
    stated = {**protocol, **result, "calibrated": calibrated, "options": options, "pool_size": sides.get(result["layer"])}
    return FigureKey("probe", f"{result['layer']} {result['head']}", _conditions(stated, PROBE_CONDITIONS))


def _conditions(stated: Mapping[str, Any], names: Iterable[str]) -> tuple[tuple[str, Any], ...]:
    """Those that hold, by name; tables and lists as text."""
    found = ((name, stated[name]) for name in names if stated.get(name))
    return tuple((name, value_text(value) if isinstance(value, (Mapping, list)) else value) for name, value in found)


def _evaluation_figures(result: Mapping[str, Any]) -> dict[FigureKey, float | None]:
    retrieval, calibration = result["retrieval"] or {}, result["calibration"] or {"temperature": {}}
    temperature = calibration["temperature"]
    nested = {
        "mrr": retrieval.get("mrr"),
        "calibration_error": temperature.get("before", {}).get("calibration_error"),
        "temperature": temperature.get("temperature"),
    }
    figures = {name: nested[name] if name in nested else result[name] for name in EVALUATION}
    figures |= {f"{ridge['layer']} ridge r2": ridge["r2"] for ridge in result["ridge"]}
    protocol = result["protocol"]
    stated = {**protocol, **result, "transform": protocol["transform"]}
    in_px = {**stated, "transform": {key: value for key, value in protocol["transform"].items() if key != "target"}}
    of = {name: _conditions(in_px if name in WITHOUT_TARGET else stated, EVALUATE_CONDITIONS) for name in figures}
    return {FigureKey("evaluate", name, of[name]): value for name, value in figures.items()}
