"""`avt evaluate`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from avtcli.cli import options
from avtcli.cli.console import reporting, say, say_facts, say_json, say_table
from avtcli.cli.options import component_options, option

if TYPE_CHECKING:
    from avtcli.evaluation.evaluate import EvaluateResult

BASELINES = {"rotation_oracle": "90-degree rotation oracle", "constant": "constant", "identity": "identity"}
DEFINITIONS = {
    "views": "centre crop and its transformed version; encoder in eval mode, mean of the code; fresh draws, never a bank",
    "MACE": "mean distance, in pixels, of the image's corners under the true and the decoded matrix",
    "R2": "1 - squared error / squared deviation from the held-out mean, pooled over the normalised target",
    "inside": "share of targets in the decoder's central interval of that probability",
    "nll": "negative log-likelihood of N(mean, exp(log_var)), without an objective's variance floor",
    "retrieval": "rank of the true target by distance to the decoded one; ties share their mean rank",
}


def evaluate(
    run: options.Run = None,
    backbone: options.Backbone = None,
    transform: options.Transform = None,
    layer: Annotated[str | None, option("Layer whose features ridge regression takes. Default: the code.", "NAME")] = None,
    dataset: options.Dataset = None,
    data_dir: options.DataDir = None,
    count: Annotated[int | None, option("Held-out images. Default: 1000, or all.", "N", panel="Data", min=2)] = None,
    calibrate_bn: options.CalibrateBatchNorm = False,
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
    from avtcli.evaluation.evaluation_setup import EvaluationRequest
    from avtcli.features.evaluation_target import load_target
    from avtcli.runtime.devices import Context

    given = options.read_components(overrides, tables=("transform",), backbone=backbone, dataset=dataset, transform=transform)
    request = EvaluationRequest(given.pop("transform"), layer, count, calibrate_bn)
    with reporting() as on_event:
        context = Context.build(device=device, workers=workers, seed=seed, on_event=on_event)
        target = load_target(run, data_dir=data_dir, context=context, **given)
        result = run_evaluate(target, request, out=out, context=context)
    if as_json:
        say_json(result)
        return
    say(f"run  {result.run}" if result.step is None else f"run  {result.run}, step {result.step}", "")
    say_table(["", "MACE px", "MSE", "R2"], _fits(result))
    say("")
    say_table(*_parameters(result))
    say("")
    say_facts(_scalars(result))
    say("")
    say_facts({**_protocol(result), **DEFINITIONS})


def _fits(result: "EvaluateResult") -> list[list[str]]:
    ridge = result.ridge
    rows = [] if result.r2_per_parameter is None else [("decoder", asdict(result))]
    rows += [(f"ridge on {ridge['layer']}", ridge), ("ridge, random weights", ridge["random"])]
    rows += [(title, result.baselines[name]) for name, title in BASELINES.items() if name in result.baselines]
    return [[title, _text(fit["mace_px"], 2), _text(fit["mse_normalised"]), _text(fit.get("r2"))] for title, fit in rows]


def _parameters(result: "EvaluateResult") -> tuple[list[str], list[list[str]]]:
    fits = {} if result.r2_per_parameter is None else {"decoder": asdict(result)}
    fits |= {"ridge": result.ridge, "random": result.ridge["random"]}
    columns = {f"{name} R2": {**fit["r2_per_parameter"], "pooled": fit["r2"]} for name, fit in fits.items()}
    calibration = result.calibration
    if calibration is not None:
        for level in (0.5, 0.8, 0.95):
            place = calibration["levels"].index(level)
            shares = {name: curve[place] for name, curve in calibration["per_parameter"].items()}
            columns[f"inside {level:.0%}"] = {**shares, "pooled": calibration["pooled"][place]}
    names = [*result.protocol["target"], "pooled"]
    return ["", *columns], [[name, *(_text(column[name]) for column in columns.values())] for name in names]


def _scalars(result: "EvaluateResult") -> dict[str, object]:
    facts: dict[str, object] = {}
    if result.retrieval is not None:
        found, chance = result.retrieval, result.retrieval["chance"]
        shares = [f"{key} {found[key]:.3f} (chance {chance[key]:.3f})" for key in chance]
        facts["retrieval"] = f"{'  '.join(shares)}, among {found['bank']} versions of each of {found['images']} images"
    if result.nll is not None:
        facts["nll"] = f"{result.nll:.3f} nats per pair"
    if result.accuracy is not None:
        facts["accuracy"] = f"{result.accuracy:.2f} %"
    return {**facts, "picture": result.calibration and result.calibration["picture"]}


def _protocol(result: "EvaluateResult") -> dict[str, object]:
    facts, ridge = result.protocol, result.ridge
    pool, share = facts["ridge"]["pool_size"], facts["ridge"]["held_out"]
    penalties = [f"{penalty:g}" for penalty in facts["ridge"]["penalties"]]
    stated = ("split", "split_images", "train_images", "transform", "target", "ridge")
    options = ", ".join(f"{key}={value}" for key, value in facts["transform"].items() if key != "name")
    return {
        "images": f"{result.count} of the {facts['split_images']} {facts['split']} images of {result.dataset}",
        "transform": f"{result.transform} ({options})" if options else result.transform,
        "target": ", ".join(f"{name} ({unit})" if unit else name for name, unit in facts["target"].items()),
        "ridge": f"{ridge['features']} standardised features of {ridge['layer']} in both views, maps average-pooled to at most "
        f"{pool}x{pool}; fitted on {ridge['fit_pairs']} of the {facts['train_images']} train images; penalty of "
        f"{', '.join(penalties)} by R2 on {share:.0%} of these",
        **{key: value for key, value in facts.items() if key not in stated},
    }


def _text(figure: float | None, digits: int = 3) -> str:
    return "-" if figure is None else f"{figure:.{digits}f}"
