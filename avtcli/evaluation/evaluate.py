"""The evaluation of a representation's equivariance: decoder, ridge and reference predictors, in one result."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avtcli.evaluation.calibration_picture import draw_calibration
from avtcli.evaluation.equivariance import DecoderFigures, baselines_of, measure_decoder
from avtcli.evaluation.evaluation_setup import EvaluationRequest, EvaluationSetup, build_evaluation_setup, describe_plugin
from avtcli.evaluation.linear_reading import HELD_OUT, PENALTIES, POOL_SIZE, measure_ridge
from avtcli.events import Notice, Saved, Started
from avtcli.features.evaluation_target import EvaluationTarget
from avtcli.models.model_building import build_encoder
from avtcli.models.weights import Weights, restore_model
from avtcli.runtime.devices import Context
from avtcli.runtime.execution import prepare_for_inference
from avtcli.storage.files import refuse_existing, to_json, write_file

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
        mace_px, mse_normalised, r2, r2_per_parameter: errors of the decoder; see `equivariance.Fit`.
        nll: nats per pair of N(mean, exp(log_var)), without an objective's variance floor.
        calibration: levels, observed coverage pooled and per_parameter, and the path of the picture.
        retrieval: mrr, hits, bank, images, and the same of a random ranking as chance.
        accuracy: percent, of an objective that predicts classes.
        baselines: mace_px and mse_normalised of reference predictors, by name; see `reference_predictions`.
        ridge: layer, fit_pairs, features a pair, penalty, its fit, and the same on a random encoder.
        protocol: resolved settings and facts that the figures depend on.
    """

    run: str
    step: int | None
    dataset: str
    transform: str
    count: int
    mace_px: float | None
    mse_normalised: float | None
    r2: float | None
    r2_per_parameter: dict[str, float | None] | None
    nll: float | None
    calibration: dict[str, Any] | None
    retrieval: dict[str, Any] | None
    accuracy: float | None
    baselines: dict[str, dict[str, float | None]]
    ridge: dict[str, Any]
    protocol: dict[str, Any]


def evaluate(target: EvaluationTarget, request: EvaluationRequest, *, out: Path | None, context: Context) -> EvaluateResult:
    """Measure how equivariant a representation is.

    The result is written to `out`. A run evaluated on its own images and distribution also keeps it as evaluate.json.

    Raises:
        AvtError: for an unknown layer or family, or more images than the split has.
    """
    if out is not None:
        refuse_existing(out)
    setup = build_evaluation_setup(target, request, context=context)
    run = _run_to_keep(target, setup, context)
    _report_start(target, setup, context)
    figures = _decoder_figures(target.source, setup, context)
    ridge = _ridge_figures(target.source, setup, context)
    result = EvaluateResult(
        run=str(target.source.path),
        step=target.source.step,
        dataset=target.prepared.dataset.name,
        transform=setup.transform.name,
        count=len(setup.images.held_out),
        **asdict(figures.fit),
        nll=figures.nll,
        calibration=_with_picture(figures.calibration, run, context),
        retrieval=figures.retrieval,
        accuracy=figures.accuracy,
        baselines=baselines_of(setup.held_out),
        ridge=ridge,
        protocol=_protocol(target, setup, context),
    )
    for path in filter(None, (run and run / "evaluate.json", out)):
        _save(path, to_json(asdict(result)), context)
    return result


def _run_to_keep(target: EvaluationTarget, setup: EvaluationSetup, context: Context) -> Path | None:
    """The run folder, for a run's newest weights on its own images and distribution only."""
    source, config = target.source, target.source.config
    if source.run is None or config is None:
        return None
    used, own = (target.prepared.dataset, setup.transform), (config.dataset, config.transform)
    same = [*map(describe_plugin, used)] == [*map(describe_plugin, own)] and target.prepared.augment == config.augment
    if source.path == source.run and same:
        return source.run
    context.on_event(Notice(f"not saved in {source.run}: its weights, images or transformations differ. Use --out to save"))
    return None


def _report_start(target: EvaluationTarget, setup: EvaluationSetup, context: Context) -> None:
    images, dataset = setup.images, target.prepared.dataset.name
    count = f"{len(images.held_out)} of the {len(images.parts.held_out)} {images.parts.name} images of {dataset}"
    where = (("device", context.device.type), ("layer", setup.layer))
    context.on_event(
        Started((("weights", str(target.source)), ("images", count), ("transform", describe_plugin(setup.transform)), *where))
    )


def _protocol(target: EvaluationTarget, setup: EvaluationSetup, context: Context) -> dict[str, Any]:
    source, prepared, parts = target.source, target.prepared, setup.images.parts
    mean, std = setup.family.statistics(prepared.size)
    return {
        "split": parts.name,
        "split_images": len(parts.held_out),
        "train_images": len(parts.train),
        "resize": prepared.augment.resize,
        "crop": list(prepared.size),
        "transform": setup.transform.model_dump(),
        "target": dict(zip(setup.family.names, setup.family.units, strict=True)),
        "target_mean": mean.tolist(),
        "target_std": std.tolist(),
        "objective": None if source.config is None else source.config.objective.name,
        "ridge": {"pool_size": POOL_SIZE, "penalties": list(PENALTIES), "held_out": HELD_OUT},
        "seed": context.seed,
        "device": context.device.type,
        "weights": source.about.get("weights"),
    }


def _decoder_figures(source: Weights, setup: EvaluationSetup, context: Context) -> DecoderFigures:
    if setup.no_decoder is not None:
        context.on_event(Notice(f"decoder not evaluated: {setup.no_decoder}"))
        return DecoderFigures()
    net = prepare_for_inference(restore_model(source), context.device)
    if net.objective.prediction is None:
        context.on_event(Notice("decoder not evaluated: the run's objective has none"))
        return DecoderFigures()
    classes = net.objective.prediction == "classes"
    return measure_decoder(net, setup.held_out, setup.versions, predicts_classes=classes, on_event=context.on_event)


def _ridge_figures(source: Weights, setup: EvaluationSetup, context: Context) -> dict[str, Any]:
    tables = {}
    for name, encoder in (("trained", setup.encoder), ("random", build_encoder(source.spec, seed=context.seed).eval())):
        net = prepare_for_inference(encoder, context.device)
        figures = measure_ridge(net, setup.layer, setup.fit, setup.held_out, name=name, context=context)
        tables[name] = {"features": figures.width, "penalty": figures.penalty, **asdict(figures.fit)}
    return {"layer": setup.layer, "fit_pairs": len(setup.images.fit), **tables["trained"], "random": tables["random"]}


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
