"""The evaluation of a representation's equivariance: decoder, ridge and reference predictors, in one result."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from avtcli.config.resolution import read_components, validate
from avtcli.evaluation.calibration_picture import draw_calibration
from avtcli.evaluation.equivariance import DecoderFigures, baselines_of, measure_decoder
from avtcli.evaluation.evaluation_setup import (
    EvaluationImages,
    EvaluationRequest,
    EvaluationSetup,
    build_evaluation_setup,
    choose_images,
    describe_plugin,
    image_classes,
)
from avtcli.evaluation.linear_reading import HELD_OUT, PENALTIES, POOL_SIZE, measure_ridges
from avtcli.events import Notice, OnEvent, Saved, Started
from avtcli.features.batch_statistics import (
    calibrate,
    calibrate_decoder,
    describe_baseline,
    describe_statistics,
    prepare_baseline,
)
from avtcli.features.evaluation_target import EvaluationTarget, ImagePart, measure_usable, open_target
from avtcli.models.weights import restore_model
from avtcli.plugin_options import parts_of
from avtcli.runtime.devices import Context
from avtcli.runtime.execution import prepare_for_inference
from avtcli.storage.files import refuse_existing, to_json, write_file
from avtcli.storage.run_folders import folder_for_results

PICTURE = "evaluate.png"


@dataclass(frozen=True)
class EvaluateResult:
    """Result of `avt evaluate`; none for metrics that are not defined or need a decoder.

    Attributes:
        run: path of the weights, or name of the backbone.
        step: training step of the weights; none for a backbone by name.
        dataset: name of the data set.
        transform: name of the family.
        count: held-out images, one pair each.
        mace_px, right_turns, mace_px_right_turn, mse_normalised, r2, r2_per_parameter: errors of the decoder; see
            `equivariance.Fit`.
        by_class: images, mace_px, right_turns and mace_px_right_turn of the decoder by the images' class.
        nll: nats per pair of N(mean, exp(log_var)), without an objective's variance floor.
        calibration: levels, observed coverage pooled and per_parameter, the path of the picture, and a temperature of all
            variances, fitted on half of the pairs, with nll, calibration_error and coverage before and after on the others.
        retrieval: mrr, hits, bank, images, and the same of a random ranking as chance.
        accuracy: percent, of an objective that predicts classes.
        baselines: mace_px and mse_normalised of reference predictors, by name; see `reference_predictions`.
        ridge: for each layer: its name, features a pair, penalty, its fit, and the same on a random encoder.
        protocol: resolved settings and facts that the figures depend on.
    """

    run: str
    step: int | None
    dataset: str
    transform: str
    count: int
    mace_px: float | None
    right_turns: float | None
    mace_px_right_turn: float | None
    mse_normalised: float | None
    r2: float | None
    r2_per_parameter: dict[str, float | None] | None
    by_class: dict[str, dict[str, float | None]] | None
    nll: float | None
    calibration: dict[str, Any] | None
    retrieval: dict[str, Any] | None
    accuracy: float | None
    baselines: dict[str, dict[str, float | None]]
    ridge: list[dict[str, Any]]
    protocol: dict[str, Any]


def evaluate_as_asked(
    arguments: Mapping[str, Any], options: Mapping[str, dict[str, Any]], *, on_event: OnEvent
) -> EvaluateResult:
    """Evaluate as the arguments of `avt evaluate` say, by name, and options by kind; see `evaluate`."""
    named = {kind: arguments[kind] for kind in ("backbone", "dataset", "transform")}
    components = read_components(options, tables=("transform",), **named)
    asked = {key: arguments[key] for key in ("count", "calibrate_bn")} | {"layers": parts_of(arguments["layer"])}
    request = validate(EvaluationRequest, {**asked, "transform": components.pop("transform")}, where="evaluate")
    target, context = open_target(arguments, components, on_event=on_event)
    return evaluate(target, request, out=arguments["out"], context=context)


def evaluate(target: EvaluationTarget, request: EvaluationRequest, *, out: Path | None, context: Context) -> EvaluateResult:
    """Measure how equivariant a representation is.

    The result is written to `out`. A run evaluated on its own images and distribution also keeps it as evaluate.json.

    Raises:
        AvtError: for an unknown layer or family, or more images than the split has.
    """
    if out is not None:
        refuse_existing(out)
    prepared, chosen = target.prepared, choose_images(target.prepared, request.count)
    held_out = ImagePart(chosen.parts.name, chosen.parts.split, chosen.held_out, prepared)
    parts = [held_out, ImagePart("train", prepared.data.train, chosen.fit, prepared)]

    def measure(usable: Sequence[ImagePart]) -> EvaluateResult:
        held_out, fit = (part.indices for part in usable)
        return _evaluate(target, request, replace(chosen, held_out=held_out, fit=fit), out, context)

    return measure_usable(parts, measure, context=context)


def _evaluate(
    target: EvaluationTarget, request: EvaluationRequest, chosen: EvaluationImages, out: Path | None, context: Context
) -> EvaluateResult:
    setup = build_evaluation_setup(target, request, chosen, context=context)
    run = _run_to_keep(target, setup, context) if context.is_main else None
    _report_start(target, setup, context)
    protocol = _protocol(target, setup, context)  # states what the measures then change in the networks
    figures = _decoder_figures(target, setup, context)
    ridge = _ridge_figures(setup, context)
    result = EvaluateResult(
        run=str(target.source.path),
        step=target.source.step,
        dataset=target.prepared.dataset.name,
        transform=setup.transform.name,
        count=len(setup.images.held_out),
        **asdict(figures.fit),
        by_class=figures.by_class,
        nll=figures.nll,
        calibration=_with_picture(figures.calibration, run, context),
        retrieval=figures.retrieval,
        accuracy=figures.accuracy,
        baselines=baselines_of(setup.held_out),
        ridge=ridge,
        protocol=protocol,
    )
    for path in filter(None, (run and run / "evaluate.json", out if context.is_main else None)):
        _save(path, to_json(asdict(result)), context)
    return result


def _run_to_keep(target: EvaluationTarget, setup: EvaluationSetup, context: Context) -> Path | None:
    """The run folder, for a run's newest weights on its own images and distribution only."""
    source, config = target.source, target.source.config
    if source.run is None or config is None:
        return None
    used, own = (target.prepared.dataset, setup.transform), (config.dataset, config.transform)
    same = [*map(describe_plugin, used)] == [*map(describe_plugin, own)] and target.prepared.augment == config.augment
    own_figures = source.path == source.run and same and not setup.calibrate_bn
    other = "" if own_figures else "its weights, statistics, images or transformations differ"
    return folder_for_results(source.run, other=other, on_event=context.on_event)


def _report_start(target: EvaluationTarget, setup: EvaluationSetup, context: Context) -> None:
    images, dataset = setup.images, target.prepared.dataset.name
    count = f"{len(images.held_out)} of the {len(images.parts.held_out)} {images.parts.name} images of {dataset}"
    where = (("device", context.device.type), ("layer", ", ".join(setup.layers)))
    context.on_event(
        Started((("weights", str(target.source)), ("images", count), ("transform", describe_plugin(setup.transform)), *where))
    )


def _protocol(target: EvaluationTarget, setup: EvaluationSetup, context: Context) -> dict[str, Any]:
    source, prepared, parts = target.source, target.prepared, setup.images.parts
    mean, std = setup.family.statistics(prepared.size)
    fitted = (len(setup.images.fit),)
    return {
        "split": parts.name,
        "split_images": len(parts.held_out),
        "train_images": len(parts.train),
        "resize": prepared.augment.resize,
        "crop": list(prepared.size),
        "transform": setup.transform.model_dump(),
        "target": dict(zip(setup.family.names, setup.family.units, strict=True)),
        "classes": setup.family.n_classes,
        "target_mean": mean.tolist(),
        "target_std": std.tolist(),
        "objective": None if source.config is None else source.config.objective.name,
        "ridge": {
            **{"pool_size": POOL_SIZE, "penalties": list(PENALTIES), "held_out": HELD_OUT},
            "fit_pairs": len(setup.images.fit),
        },
        "seed": context.seed,
        "device": context.device.type,
        "weights": source.about.get("weights"),
        "calibrated": describe_statistics(setup.encoder, fitted) if setup.calibrate_bn else None,
        "random": describe_baseline(setup.random, fitted),
    }


def _decoder_figures(target: EvaluationTarget, setup: EvaluationSetup, context: Context) -> DecoderFigures:
    if setup.no_decoder is not None:
        context.on_event(Notice(f"decoder not evaluated: {setup.no_decoder}"))
        return DecoderFigures()
    net = prepare_for_inference(restore_model(target.source), context.device)
    if net.objective.prediction is None:
        context.on_event(Notice("decoder not evaluated: the run's objective has none"))
        return DecoderFigures()
    if setup.calibrate_bn:
        calibrate_decoder(net, setup.fit, context=context)
    predicts_classes = net.objective.prediction == "classes"
    return measure_decoder(
        net,
        setup.held_out,
        setup.versions,
        classes=image_classes(target.prepared, setup.images),
        predicts_classes=predicts_classes,
        on_event=context.on_event,
    )


def _ridge_figures(setup: EvaluationSetup, context: Context) -> list[dict[str, Any]]:
    tables, fit = dict[str, dict[str, dict[str, Any]]](), setup.fit
    trained, random = (prepare_for_inference(net, context.device) for net in (setup.encoder, setup.random))
    if setup.calibrate_bn:
        calibrate(trained, fit.images, fit.size, task="trained", context=context)
    prepare_baseline(random, fit.images, fit.size, context=context)
    for name, net in (("trained", trained), ("random", random)):
        ridges = measure_ridges(net, setup.layers, fit, setup.held_out, name=name, context=context)
        tables[name] = {
            layer: {"features": ridge.width, "penalty": ridge.penalty, **asdict(ridge.fit)} for layer, ridge in ridges.items()
        }
    return [{"layer": layer, **own, "random": tables["random"][layer]} for layer, own in tables["trained"].items()]


def _with_picture(calibration: dict[str, Any] | None, run: Path | None, context: Context) -> dict[str, Any] | None:
    path = run and run / PICTURE
    if path is not None:
        path.unlink(missing_ok=True)  # that of an earlier evaluation
    if calibration is None or path is None:
        return calibration and {**calibration, "picture": None}
    picture = draw_calibration(calibration)
    if picture is None:
        context.on_event(Notice("no calibration plot: matplotlib is not installed. `pip install 'avtcli[report]'`"))
        return {**calibration, "picture": None}
    _save(path, picture, context)
    return {**calibration, "picture": str(path)}


def _save(path: Path, content: bytes, context: Context) -> None:
    write_file(path, content, replace=True)
    context.on_event(Saved(path))
