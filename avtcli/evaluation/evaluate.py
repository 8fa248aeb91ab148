"""Evaluating: how equivariant a representation is, by its own decoder and by a linear reader of frozen features."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avtcli.evaluation.calibration_picture import draw_calibration
from avtcli.evaluation.equivariance import DecoderFigures, baselines_of, measure_decoder
from avtcli.evaluation.evaluation_protocol import describe_evaluation
from avtcli.evaluation.evaluation_setup import EvaluationSetup, Settings, build_evaluation_setup
from avtcli.evaluation.linear_reading import measure_ridge
from avtcli.events import Notice, OnEvent, Saved, Started
from avtcli.features.evaluation_target import EvaluationTarget
from avtcli.models.model_building import build_encoder
from avtcli.models.weights import Weights, restore_model
from avtcli.runtime.execution import prepare_for_inference
from avtcli.storage.files import disk_errors_explained, refuse_existing, replace_file, to_json, write_synced

PICTURE = "evaluate.png"


@dataclass(frozen=True)
class EvaluateResult:
    """What `avt evaluate` reports; none where there is no decoder, or the figure is not defined.

    Attributes:
        run: where the weights came from.
        dataset: the images.
        transform: the family of transformations.
        count: held-out images, one pair each.
        mace_px: the decoder's; see `equivariance.Fit`.
        mse_normalised: likewise.
        r2: likewise.
        r2_per_parameter: likewise.
        nll: nats a pair.
        calibration: levels, observed coverage pooled and per_parameter, and the picture's path or none.
        retrieval: mrr, hits, bank, images, and the figures of chance.
        accuracy: percent, of an objective that predicts classes.
        baselines: mace_px and mse_normalised of trivial predictors, by name; see `core.trivial`.
        ridge: layer, features, fit_pairs, penalty, its fit, and the same on a random encoder.
        protocol: what the numbers depend on.
    """

    run: str
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


def evaluate(subject: EvaluationTarget, settings: Settings, *, out: Path | None, on_event: OnEvent) -> EvaluateResult:
    """Measure how equivariant a representation is.

    Args:
        subject: weights, and images to measure them on.
        settings: what is measured how.
        out: where the result goes beside evaluate.json in the run, which its own images and distribution have; none for nowhere else.
        on_event: told what happens.

    Raises:
        AvtError: for a layer or family that does not exist, or more images than there are.
    """
    if out is not None:
        refuse_existing(out)
    setup = build_evaluation_setup(subject, settings)
    run = _keeper(subject, setup, on_event=on_event)
    protocol = describe_evaluation(subject, setup)
    on_event(Started((*((label, protocol[label]) for label in ("images", "distribution", "device")), ("layer", setup.layer))))
    figures = _decoder_figures(subject.source, setup, on_event=on_event)
    ridge = _ridge_table(subject.source, setup, on_event=on_event)
    result = EvaluateResult(
        run=str(subject.source.path),
        dataset=subject.prepared.dataset.name,
        transform=setup.plugin.name,
        count=len(setup.choice.held_out),
        **asdict(figures.fit),
        nll=figures.nll,
        calibration=_with_picture(figures.calibration, run, on_event=on_event),
        retrieval=figures.retrieval,
        accuracy=figures.accuracy,
        baselines=baselines_of(setup.held_out),
        ridge=ridge,
        protocol=protocol,
    )
    _write(result, run, out, on_event=on_event)
    return result


def _keeper(subject: EvaluationTarget, setup: EvaluationSetup, *, on_event: OnEvent) -> Path | None:
    """The run folder that keeps the result: for its newest weights, own images and own distribution alone; others are not it."""
    source, config = subject.source, subject.source.config
    if source.run is None or config is None:
        return None
    if source.path == source.run and subject.prepared.dataset == config.dataset and setup.plugin == config.transform:
        return source.run
    on_event(Notice(f"not kept in {source.run}, whose own weights, images or transformations are others: --out keeps it"))
    return None


def _decoder_figures(source: Weights, setup: EvaluationSetup, *, on_event: OnEvent) -> DecoderFigures:
    if setup.no_decoder is not None:
        on_event(Notice(f"no figures of a decoder: {setup.no_decoder}"))
        return DecoderFigures()
    net = prepare_for_inference(restore_model(source), setup.device)
    return measure_decoder(
        net, setup.held_out, setup.versions, predicts_classes=net.objective.prediction == "classes", on_event=on_event
    )


def _ridge_table(source: Weights, setup: EvaluationSetup, *, on_event: OnEvent) -> dict[str, Any]:
    tables = {}
    for name, encoder in (("trained", setup.encoder), ("random", build_encoder(source.spec, seed=setup.seed).eval())):
        figures = measure_ridge(
            prepare_for_inference(encoder, setup.device),
            setup.layer,
            setup.fit,
            setup.held_out,
            name=name,
            seed=setup.seed,
            on_event=on_event,
        )
        features = f"{setup.layer} of both views, {figures.width} numbers a pair"
        tables[name] = {"features": features, "penalty": figures.penalty, **asdict(figures.fit)}
    return {"layer": setup.layer, "fit_pairs": len(setup.choice.fit), **tables["trained"], "random": tables["random"]}


def _with_picture(calibration: dict[str, Any] | None, run: Path | None, *, on_event: OnEvent) -> dict[str, Any] | None:
    """Name the picture beside the figures, drawn anew in the run's folder."""
    if run is not None:
        (run / PICTURE).unlink(missing_ok=True)  # of an earlier evaluation
    if calibration is None or run is None:
        return None if calibration is None else {**calibration, "picture": None}
    picture = draw_calibration(calibration)
    if picture is None:
        on_event(Notice("no picture of the calibration: matplotlib is not installed. `pip install 'avtcli[report]'`"))
        return {**calibration, "picture": None}
    path = run / PICTURE
    with disk_errors_explained(path):
        replace_file(path, picture)
    on_event(Saved(path))
    return {**calibration, "picture": str(path)}


def _write(result: EvaluateResult, run: Path | None, out: Path | None, *, on_event: OnEvent) -> None:
    content = to_json(asdict(result))
    if run is not None:
        with disk_errors_explained(run / "evaluate.json"):
            replace_file(run / "evaluate.json", content)
        on_event(Saved(run / "evaluate.json"))
    if out is not None:
        with disk_errors_explained(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_synced(out, content)
        on_event(Saved(out))
