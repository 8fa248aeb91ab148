"""`avt evaluate`."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avtcli.cli.console import reporting, say, say_json, say_table
from avtcli.cli.options import (
    DataDir,
    Dataset,
    Device,
    Json,
    MeasuredBackbone,
    Options,
    Run,
    Seed,
    Transform,
    Workers,
    parts_to_measure,
    workers_from_text,
)

if TYPE_CHECKING:
    from avtcli.evaluation.evaluate import EvaluateResult

BASELINES = {"rotation_oracle": "quarter turn known", "constant": "constant", "identity": "identity"}
SHOWN_LEVELS = (0.5, 0.8, 0.95)


def evaluate(
    run: Run = None,
    backbone: MeasuredBackbone = None,
    transform: Transform = None,
    layer: Annotated[
        str | None, typer.Option(metavar="NAME", help="The layer that the ridge reads. Left out: the code.")
    ] = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    count: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Held-out images. Left out: 1000, or all.", rich_help_panel="Data"),
    ] = None,
    seed: Seed = None,
    options: Options = None,
    device: Device = None,
    workers: Workers = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Write the result here too.", rich_help_panel="Output"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how equivariant a representation is: how well the transformation between two views can be told from it.

    A run's own decoder tells it, and a linear reader (ridge) of frozen features, each beside predictors that see no image and
    beside random weights. A run folder gets evaluate.json and evaluate.png.

    Example: `avt evaluate --layer conv2`

    Example: `avt evaluate --backbone resnet18 -o backbone.pretrained=true --dataset cifar10 --transform rotation`
    """
    from avtcli.evaluation.evaluate import evaluate as run_evaluate
    from avtcli.evaluation.evaluation_setup import Settings
    from avtcli.features.evaluation_target import load_target

    given = parts_to_measure("evaluate", options, tables=["transform"], backbone=backbone, dataset=dataset, transform=transform)
    settings = Settings(
        transform=given.pop("transform"),
        layer=layer,
        count=count,
        seed=seed or 0,
        device=device or "auto",
        workers=workers_from_text(workers),
    )
    with reporting() as on_event:
        subject = load_target(run, data_dir=data_dir, seed=settings.seed, on_event=on_event, **given)
        result = run_evaluate(subject, settings, out=out, on_event=on_event)
    if as_json:
        say_json(asdict(result))
    else:
        _print(result)


def _print(result: "EvaluateResult") -> None:
    say(f"run  {result.run}", "")
    say_table(["", "MACE px", "MSE", "R2"], list(_fits(result)))
    say("")
    say_table(*_parameters(result))
    say("")
    say(*_others(result))
    for key, value in result.protocol.items():
        if value is not None:
            say(f"{key:<17}  {_in_words(value)}")


def _fits(result: "EvaluateResult") -> Iterator[list[str]]:
    """The decoder and the ridge beside what is trivial and random."""
    ridge, layer = result.ridge, result.ridge["layer"]
    rows = [(f"ridge on {layer}", ridge), ("ridge, random weights", ridge["random"])]
    if result.r2_per_parameter is not None:
        rows.insert(0, ("decoder", asdict(result)))
    rows += [(words, result.baselines[name]) for name, words in BASELINES.items() if name in result.baselines]
    for words, fit in rows:
        yield [words, _text(fit["mace_px"], 2), _text(fit["mse_normalised"], 3), _text(fit.get("r2"), 3)]


def _parameters(result: "EvaluateResult") -> tuple[list[str], list[list[str]]]:
    """R2 and coverage by the target's number."""
    columns = {"ridge R2": result.ridge["r2_per_parameter"], "random R2": result.ridge["random"]["r2_per_parameter"]}
    if result.r2_per_parameter is not None:
        columns = {"decoder R2": result.r2_per_parameter, **columns}
    calibration = result.calibration
    if calibration is not None:
        for level in SHOWN_LEVELS:
            place = calibration["levels"].index(level)
            shares = {name: curve[place] for name, curve in calibration["per_parameter"].items()}
            columns[f"inside {level:.0%}"] = {**shares, "pooled": calibration["pooled"][place]}
    pooled = {"decoder R2": result.r2, "ridge R2": result.ridge["r2"], "random R2": result.ridge["random"]["r2"]}
    columns = {title: {"pooled": pooled.get(title), **column} for title, column in columns.items()}
    names = [*result.protocol["target"], "pooled"]
    return ["", *columns], [[name, *(_text(column[name], 3) for column in columns.values())] for name in names]


def _others(result: "EvaluateResult") -> Iterator[str]:
    """Figures that stand alone, a line each, and a line between them and the protocol."""
    if result.retrieval is not None:
        found, chance = result.retrieval, result.retrieval["chance"]
        shares = [f"{key} {found[key]:.3f} (chance {chance[key]:.3f})" for key in chance]
        yield f"retrieval  {'  '.join(shares)}, among {found['bank']} versions of each of {found['images']} images"
    if result.nll is not None:
        yield f"nll        {result.nll:.3f} nats a pair"
    if result.accuracy is not None:
        yield f"accuracy   {result.accuracy:.2f} %"
    if result.calibration is not None and result.calibration["picture"] is not None:
        yield f"picture    {result.calibration['picture']}"
    yield ""


def _text(figure: float | None, digits: int) -> str:
    return "-" if figure is None else f"{figure:.{digits}f}"


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} ({part})" if part else key for key, part in value.items())
    return ", ".join(f"{part:.6g}" for part in value) if isinstance(value, list) else str(value)
