"""`avt evaluate`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from avtcli.cli import options
from avtcli.cli.completion import complete_layers
from avtcli.cli.console import reporting, say, say_facts, say_json, say_table
from avtcli.cli.launch import start_processes
from avtcli.cli.options import component_options, option
from avtcli.reporting.run_summary import BASELINES
from avtcli.runtime.launcher import read_launch

if TYPE_CHECKING:
    from avtcli.evaluation.evaluate import EvaluateResult

KINDS = ("backbone", "dataset", "transform", "augment")
_LAYER = "Layers whose features ridge regression takes, one at a time. Default: the code."
MOST_CLASSES = 20
"""Classes up to which the table by class is printed; the JSON has all."""
TURNS = {"right turns": ("right_turns", 3), "MACE px at these": ("mace_px_right_turn", 2)}
INSIDE = (0.5, 0.8, 0.95)
RANKS = {"mrr": "mean reciprocal rank", "hit1": "ranked first", "hit5": "among the first 5"}
TITLES = {
    "fits": "Transformation predicted from two views: mean corner error (MACE) in px; MSE and R2 of the normalised target",
    "by class": "The same by class of the image",
    "calibration": "Calibration: share of targets in the decoder's intervals without and with a temperature, half of the pairs",
}
DEFINITIONS = {
    "views": "centre crop and its transformed version; encoder in eval mode, mean of the code; fresh draws, never a bank",
    "MACE": "mean distance, in pixels, of the image's corners under the true and the decoded matrix",
    "right turns": "share of pairs whose decoded rotation of the corners is nearest to the true multiple of 90 degrees",
    "R2": "1 - squared error / squared deviation from the held-out mean, pooled over the normalised target",
    "inside": "share of targets in the decoder's central interval of that probability",
    "calibration error": "mean |observed - nominal| share inside, over intervals of 5 to 95 % and the parameters",
    "temperature": "factor of all variances, fitted by maximum likelihood on half of the pairs; the rows show the other half",
    "nll": "negative log-likelihood of N(mean, exp(log_var)), without an objective's variance floor",
    "retrieval": "rank of the true target by distance to the decoded one; ties share their mean rank",
}


def evaluate(
    run: options.Run = None,
    backbone: options.Backbone = None,
    init_from: options.InitFrom = None,
    transform: options.Transform = None,
    layer: Annotated[str | None, option(_LAYER, "NAME[,NAME...]|all", autocompletion=complete_layers(all_of_them=True))] = None,
    dataset: options.Dataset = None,
    data_dir: options.DataDir = None,
    count: Annotated[int | None, option("Held-out images. Default: 1000, or all.", "N", panel="Data")] = None,
    calibrate_bn: options.CalibrateBatchNorm = False,
    seed: options.Seed = 0,
    overrides: Annotated[list[str] | None, component_options(*KINDS)] = None,
    device: options.Device = "auto",
    processes: options.Processes = 1,
    workers: options.Workers = None,
    out: options.OutJson = None,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
) -> None:
    """Measure how equivariant a representation is.

    The run's decoder and ridge regression on frozen features predict the transformation between two views. Predictors that
    see no image and random weights are the baselines. A run folder receives evaluate.json and evaluate.png.

    Example: `avt evaluate --layer all`

    Example: `avt evaluate --backbone resnet18 -o backbone.pretrained=true --dataset cifar10 --transform rotation`
    """
    arguments = locals()
    from avtcli.config.components import FEW_IMAGES
    from avtcli.config.resolution import options_from_texts
    from avtcli.evaluation.evaluate import evaluate_as_asked

    start_processes(processes)
    with reporting() as on_event:
        result = evaluate_as_asked(arguments, options_from_texts(overrides or [], kinds=KINDS), on_event=on_event)
    if read_launch().rank > 0:
        return
    if as_json:
        say_json(result)
        return
    say(f"run  {result.run}" if result.step is None else f"run  {result.run}, step {result.step}", "")
    fits = _fits(result)
    best = _best(fits[1]) if result.count >= FEW_IMAGES else None
    tables = {TITLES["fits"]: fits, **({_parameters_title(result): _parameters(result)} if verbose else {})}
    tables |= {TITLES["by class"]: _by_class(result), TITLES["calibration"]: _calibration(result)}
    for title, table in tables.items():
        if table[1]:
            say(title)
            say_table(*table, best=best if table is fits else None)
            say("")
    if any((scalars := _scalars(result)).values()):
        say_facts(scalars)
        say("")
    say_facts({**_whole_protocol(result), **DEFINITIONS} if verbose else _protocol(result))


def _fits(result: "EvaluateResult") -> tuple[list[str], list[list[str]]]:
    rows = [] if result.r2_per_parameter is None else [("decoder", asdict(result))]
    rows += [(f"ridge on {ridge['layer']}", ridge) for ridge in result.ridge]
    rows += [(f"ridge on {ridge['layer']}, random weights", ridge["random"]) for ridge in result.ridge]
    turns = any(fit["right_turns"] is not None for _, fit in rows)
    rows += [(title, result.baselines[name]) for name, title in BASELINES.items() if name in result.baselines]
    columns = {"MACE px": ("mace_px", 2), **(TURNS if turns else {}), "MSE": ("mse_normalised", 3), "R2": ("r2", 3)}
    return ["", *columns], [[title, *(_text(fit.get(key), digits) for key, digits in columns.values())] for title, fit in rows]


def _best(rows: list[list[str]]) -> int | None:
    """The row of the least corner error, else of the highest R2; predictors that see no image are none."""
    column = 1 if any(row[1] != "-" for row in rows) else -1
    own = {i: row[column] for i, row in enumerate(rows) if row[0] not in BASELINES.values() and row[column] != "-"}
    figures = {i: column * float(figure) for i, figure in own.items()}
    return min(figures, key=lambda i: figures[i], default=None)


def _parameters_title(result: "EvaluateResult") -> str:
    names = {name.rpartition(".")[2] for name in result.protocol["target"]}
    turned = "u, v: the corner to which each corner is turned, px; x, y: its offset from there, px"
    what = turned if "u0" in names else "x, y: offsets of the corners, px" if "x0" in names else ""
    return f"By parameter{f' ({what})' if what else ''}: R2, and share inside the decoder's intervals"


def _parameters(result: "EvaluateResult") -> tuple[list[str], list[list[str]]]:
    fits = {} if result.r2_per_parameter is None else {"decoder": asdict(result)}
    fits |= {ridge["layer"]: ridge for ridge in result.ridge}
    columns = {f"{name} R2": {**fit["r2_per_parameter"], "pooled": fit["r2"]} for name, fit in fits.items()}
    calibration = result.calibration
    if calibration is not None:
        for level in INSIDE:
            place = calibration["levels"].index(level)
            shares = {name: curve[place] for name, curve in calibration["per_parameter"].items()}
            columns[f"inside {level:.0%}"] = {**shares, "pooled": calibration["pooled"][place]}
    names = [*result.protocol["target"], "pooled"]
    return ["", *columns], [[name, *(_text(column[name]) for column in columns.values())] for name in names]


def _by_class(result: "EvaluateResult") -> tuple[list[str], list[list[str]]]:
    classes = result.by_class or {}
    columns = {"images": ("images", 0), "MACE px": ("mace_px", 2), **(TURNS if result.right_turns is not None else {})}
    rows = [[name, *(_text(own[key], digits) for key, digits in columns.values())] for name, own in classes.items()]
    return ["class", *columns], rows if len(rows) <= MOST_CLASSES else []


def _calibration(result: "EvaluateResult") -> tuple[list[str], list[list[str]]]:
    calibration = result.calibration
    if calibration is None:
        return [], []
    found = calibration["temperature"]
    rows = {"none": found["before"], _text(found["temperature"]): found["after"]}
    places = [calibration["levels"].index(level) for level in INSIDE]
    return (
        ["temperature", "nll", "calibration error", *(f"inside {level:.0%}" for level in INSIDE)],
        [
            [name, *map(_text, (row["nll"], row["calibration_error"], *(row["coverage"][place] for place in places)))]
            for name, row in rows.items()
            if row is not None
        ],
    )


def _scalars(result: "EvaluateResult") -> dict[str, object]:
    facts: dict[str, object] = {}
    if result.retrieval is not None:
        found, chance = result.retrieval, result.retrieval["chance"]
        shares = [f"{RANKS[key]} {found[key]:.3f} (chance {chance[key]:.3f})" for key in chance]
        facts["retrieval"] = f"{', '.join(shares)}, among {found['bank']} versions of each of {found['images']} images"
    if result.nll is not None:
        facts["nll"] = f"{result.nll:.3f} nats per pair (negative log-likelihood)"
    if result.accuracy is not None:
        chance = 100 / result.protocol["classes"]
        facts["accuracy"] = f"{result.accuracy:.2f} % of the pairs: the class of the {result.transform} (chance {chance:g} %)"
    return {**facts, "picture": result.calibration and result.calibration["picture"]}


def _protocol(result: "EvaluateResult") -> dict[str, object]:
    """The protocol in two lines."""
    facts, whole, ridge = result.protocol, _whole_protocol(result), result.protocol["ridge"]
    fitted = f"ridge of {ridge['fit_pairs']} train images, penalty chosen on {ridge['held_out']:.0%} of them"
    return {
        "images": f"{whole['images']}, {result.transform}",
        "protocol": f"{fitted}; baseline: {facts['random']} (all of it: --verbose)",
        "calibrated": facts["calibrated"],
    }


def _whole_protocol(result: "EvaluateResult") -> dict[str, object]:
    facts, ridge = result.protocol, result.protocol["ridge"]
    features = ", ".join(f"{own['features']} of {own['layer']}" for own in result.ridge)
    penalties = ", ".join(f"{penalty:g}" for penalty in ridge["penalties"])
    stated = ("split", "split_images", "train_images", "transform", "target", "ridge")
    options = ", ".join(f"{key}={value}" for key, value in facts["transform"].items() if key != "name")
    return {
        "images": f"{result.count} of the {facts['split_images']} {facts['split']} images of {result.dataset}",
        "transform": f"{result.transform} ({options})" if options else result.transform,
        "target": ", ".join(f"{name} ({unit})" if unit else name for name, unit in facts["target"].items()),
        "ridge": f"standardised features in both views ({features}), maps average-pooled to at most "
        f"{ridge['pool_size']}x{ridge['pool_size']}; fitted on {ridge['fit_pairs']} of the {facts['train_images']} train "
        f"images; penalty of {penalties} by R2 on {ridge['held_out']:.0%} of these",
        **{key: value for key, value in facts.items() if key not in stated},
    }


def _text(figure: float | None, digits: int = 3) -> str:
    return "-" if figure is None else f"{figure:.{digits}f}"
