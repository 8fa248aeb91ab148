"""`avt evaluate`."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from avtcli.cli import options
from avtcli.cli.console import reporting, say, say_facts, say_json, say_table
from avtcli.cli.options import component_options, option

if TYPE_CHECKING:
    from avtcli.evaluation.evaluate import EvaluateResult

BASELINES = {"rotation_oracle": "90-degree rotation oracle", "constant": "constant", "identity": "identity"}
SHOWN_LEVELS = (0.5, 0.8, 0.95)


def evaluate(
    run: options.Run = None,
    backbone: options.Backbone = None,
    transform: options.Transform = None,
    layer: Annotated[str | None, option("Layer whose features ridge regression takes. Default: the code.", "NAME")] = None,
    dataset: options.Dataset = None,
    data_dir: options.DataDir = None,
    count: Annotated[int | None, option("Held-out images. Default: 1000, or all.", "N", panel="Data", min=2)] = None,
    seed: options.Seed = 0,
    overrides: Annotated[list[str] | None, component_options("backbone", "dataset", "transform", "augment")] = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    out: options.OutJson = None,
    as_json: options.Json = False,
) -> None:
    """Measure how equivariant a representation is.

    The run's decoder and ridge regression on frozen features predict the transformation between two views. Predictors that
    see no image and random weights are the baselines. A run folder receives evaluate.json and evaluate.png.

    Example: `avt evaluate --layer conv2`

    Example: `avt evaluate --backbone resnet18 -o backbone.pretrained=true --dataset cifar10 --transform rotation`
    """
    from avtcli.evaluation.evaluate import evaluate as run_evaluate
    from avtcli.evaluation.evaluation_setup import Settings
    from avtcli.features.evaluation_target import load_target

    given = options.read_components(overrides, tables=("transform",), backbone=backbone, dataset=dataset, transform=transform)
    settings = Settings(transform=given.pop("transform"), layer=layer, count=count, seed=seed, device=device, workers=workers)
    with reporting() as on_event:
        subject = load_target(run, data_dir=data_dir, seed=seed, on_event=on_event, **given)
        result = run_evaluate(subject, settings, out=out, on_event=on_event)
    if as_json:
        say_json(result)
    else:
        _print(result)


def _print(result: "EvaluateResult") -> None:
    say(f"run  {result.run}", "")
    say_table(["", "MACE px", "MSE", "R2"], list(_fits(result)))
    say("")
    say_table(*_parameters(result))
    say("", *_single_figures(result), "")
    target = [f"{name} ({unit})" if unit else name for name, unit in result.protocol["target"].items()]
    say_facts({**result.protocol, "target": target})


def _fits(result: "EvaluateResult") -> Iterator[list[str]]:
    """Rows of the decoder, ridge regression, random weights and the baselines."""
    ridge, layer = result.ridge, result.ridge["layer"]
    rows = [(f"ridge on {layer}", ridge), ("ridge, random weights", ridge["random"])]
    if result.r2_per_parameter is not None:
        rows.insert(0, ("decoder", asdict(result)))
    rows += [(label, result.baselines[name]) for name, label in BASELINES.items() if name in result.baselines]
    for label, fit in rows:
        yield [label, _number(fit["mace_px"], 2), _number(fit["mse_normalised"], 3), _number(fit.get("r2"), 3)]


def _parameters(result: "EvaluateResult") -> tuple[list[str], list[list[str]]]:
    """Header and rows of R2 and coverage for each value of the target."""
    random = result.ridge["random"]
    columns = {
        "ridge R2": {**result.ridge["r2_per_parameter"], "pooled": result.ridge["r2"]},
        "random R2": {**random["r2_per_parameter"], "pooled": random["r2"]},
    }
    if result.r2_per_parameter is not None:
        columns = {"decoder R2": {**result.r2_per_parameter, "pooled": result.r2}, **columns}
    calibration = result.calibration or {}
    for level in SHOWN_LEVELS if calibration else ():
        index = calibration["levels"].index(level)
        coverage = {name: curve[index] for name, curve in calibration["per_parameter"].items()}
        columns[f"inside {level:.0%}"] = {**coverage, "pooled": calibration["pooled"][index]}
    names = [*result.protocol["target"], "pooled"]
    return ["", *columns], [[name, *(_number(column[name], 3) for column in columns.values())] for name in names]


def _single_figures(result: "EvaluateResult") -> Iterator[str]:
    if result.retrieval is not None:
        found, chance = result.retrieval, result.retrieval["chance"]
        shares = [f"{key} {found[key]:.3f} (chance {chance[key]:.3f})" for key in chance]
        yield f"retrieval  {'  '.join(shares)}, among {found['bank']} versions of each of {found['images']} images"
    if result.nll is not None:
        yield f"nll        {result.nll:.3f} nats per pair"
    if result.accuracy is not None:
        yield f"accuracy   {result.accuracy:.2f} %"
    if result.calibration is not None and result.calibration["picture"] is not None:
        yield f"picture    {result.calibration['picture']}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
