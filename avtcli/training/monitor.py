"""Evaluations while a run is trained: the same figures on the same images, one log line each."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite

import torch
from torch import Tensor

from avtcli.data.held_out import limited
from avtcli.errors import AvtError
from avtcli.events import Event, Notice, OnEvent, ignore
from avtcli.features.batch_statistics import prepare_baseline
from avtcli.features.pooling import SIDE, pool_features, read_codes
from avtcli.features.transformed_pairs import corner_errors, predict, sample_pairs
from avtcli.metrics.accuracy import topk_percent
from avtcli.metrics.feature_statistics import column_std, effective_rank
from avtcli.metrics.knn import nearest, vote
from avtcli.metrics.reference_predictors import mean_matrix
from avtcli.metrics.transformation_error import corner_error
from avtcli.models.encoder import Encoder
from avtcli.runtime.devices import Context
from avtcli.runtime.processes import run_in_main
from avtcli.runtime.signals import Stop
from avtcli.seeding import keyed_generator
from avtcli.storage.metrics_log import MetricsLog
from avtcli.training.collapse import Point, format_figure, new_signs
from avtcli.training.run_log import Tracking
from avtcli.training.training_setup import TrainingSetup

BANK_COUNT, QUERY_COUNT = 1000, 500  # images at most: for a resolution of a few percent, at less than the cost of an epoch
NEIGHBOURS, TEMPERATURE = 20, 0.07


@dataclass(frozen=True)
class RunQuality:
    """Figures of one evaluation; none where undefined or not finite.

    Attributes:
        mace_px: corner error of the decoder on the run's `monitored` images, each under a fresh transformation; none for
            photometric families and without a decoder of the target.
        constant_mace_px: corner error of the distribution's mean coefficients under the same transformations.
        knn_top1: percent of 500 of the monitored images that 1 000 other training images classify: the 20 nearest by cosine
            vote with temperature 0.07, on the mean code, average-pooled to 4x4 and flattened; none without labels.
        rankme: effective rank of the average-pooled code of these 1 000 images.
        rankme_max: its upper bound.
        code_std: standard deviation of the same over the images, mean over the channels, divided by their root mean square:
            0 says that all images have one code. Unscaled, it would follow the arbitrary scale of an untrained network.
    """

    mace_px: float | None
    constant_mace_px: float | None
    knn_top1: float | None
    rankme: float | None
    rankme_max: int
    code_std: float | None


@dataclass(frozen=True)
class Outcome:
    """Why a run must stop after an evaluation, in every process alike; nothing set: it goes on.

    Attributes:
        collapse: the collapse for which the run must stop.
        failure: what made the evaluation fail.
        signal: number of the signal that interrupted the evaluation, of which nothing is kept.
    """

    collapse: str = ""
    failure: str = ""
    signal: int = 0


class _Interrupted(Exception):
    """A signal arrived during an evaluation."""


class Monitor:
    """Evaluates a run when it is due, logs the figures, and reports a collapse, each kind once.

    Its state is the log, so that a resumed run goes on exactly as before. The network keeps its mode, and no random draw of the
    training changes. Trackers receive the figures as `eval/NAME`.
    """

    def __init__(self, setup: TrainingSetup, metrics: MetricsLog, tracking: Tracking, *, stop: Stop, on_event: OnEvent) -> None:
        self.setup, self.metrics, self.tracking, self.stop, self.on_event = setup, metrics, tracking, stop, on_event
        self.points: list[Point] = [line for line in metrics.read() if _is_point(line)]

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after a step: the first, every `eval_every` epochs, and the last epoch."""
        config, (epoch, rest) = self.setup.config, divmod(step, self.setup.steps_per_epoch)
        if not config.eval_every or not step:
            return False
        return step == 1 or (not rest and (epoch % config.eval_every == 0 or epoch == config.total_epochs))

    def maybe_evaluate(self, step: int) -> Outcome:
        """Evaluate if it is due, in the main process while the others wait, and return the outcome in every process."""
        if not self.is_due(step):
            return Outcome()
        known = bool(self.points) and self.points[-1]["step"] == step  # evaluated before the run was resumed
        return run_in_main(self.setup.group, lambda: Outcome() if known else self._evaluate(step))

    def final_mace(self, step: int) -> float | None:
        """Return the corner error after the last step: as evaluated there, or measured now."""
        if self.points and self.points[-1]["step"] == step:
            mace_px: float | None = self.points[-1]["eval"]["mace_px"]
            return mace_px
        self.setup.net.eval()
        try:
            return _decoder_mace(self.setup, on_event=self.on_event)
        except AvtError as error:  # the run is complete without it
            self.on_event(Notice(f"the corner error was not measured: {error}"))
            return None

    def _watch(self, event: Event) -> None:
        if self.stop.number:
            raise _Interrupted
        self.on_event(event)

    def _evaluate(self, step: int) -> Outcome:
        setup, training = self.setup, self.setup.net.training
        setup.net.eval()
        try:
            figures = asdict(measure_quality(setup, untrained=step == 1, on_event=self._watch))
        except _Interrupted:
            return Outcome(signal=self.stop.number)
        except AvtError as error:
            return Outcome(failure=str(error))
        finally:
            setup.net.train(training)
        self.points.append({"step": step, "epoch": step // setup.steps_per_epoch, "eval": figures})
        self.metrics.append(self.points[-1:])
        self.tracking.log(step, {f"eval/{name}": value for name, value in figures.items() if value is not None})
        self.on_event(Notice(_summary(self.points)))
        signs = new_signs(self.points, config=setup.config, steps_per_epoch=setup.steps_per_epoch)
        if setup.config.stop_on_collapse:
            return Outcome(collapse=" ".join(signs))
        for sign in signs:
            self.on_event(Notice(sign))
        return Outcome()


def _is_point(line: Point) -> bool:
    figures, known = line.get("eval"), {field.name for field in fields(RunQuality)}
    return isinstance(figures, dict) and known <= set(figures) and type(line.get("epoch")) is int


def _summary(points: Sequence[Point]) -> str:
    """Return `epoch 10: MACE 12.3 px (constant 23.5)  k-NN 81.2 % (+1.3)  RankMe 31.0/48  code std 0.41`."""
    first, now = points[0]["eval"], points[-1]["eval"]
    words = []
    if now["constant_mace_px"] is not None:
        words.append(f"MACE {format_figure(now['mace_px'], '.1f')} px (constant {now['constant_mace_px']:.1f})")
    if now["knn_top1"] is not None:
        gain = "" if len(points) == 1 or first["knn_top1"] is None else f" ({now['knn_top1'] - first['knn_top1']:+.1f})"
        words.append(f"k-NN {now['knn_top1']:.1f} %{gain}")
    words.append(f"RankMe {format_figure(now['rankme'], '.1f')}/{now['rankme_max']}")
    words.append(f"code std {format_figure(now['code_std'], '.3f')}")
    return f"epoch {points[-1]['epoch']}: " + "  ".join(words)


def measure_quality(setup: TrainingSetup, *, untrained: bool = False, on_event: OnEvent = ignore) -> RunQuality:
    """Evaluate a network in eval mode; the images depend on the data alone, the transformations on the seed too.

    No test image is read: these are for `probe` and `evaluate`. The codes of an untrained network are those of a copy, see
    `prepare_baseline`: later evaluations are compared with them.
    """
    pool, monitored, encoder = setup.parts.train, setup.monitored, setup.net.encoder
    others = limited(pool, min(BANK_COUNT, max(1, len(pool) - len(monitored))))  # drawn first, the monitored ones last
    if untrained:
        encoder = _baseline(setup, others, on_event=on_event)
    bank, vectors, labels = _codes(setup, encoder, others, task="monitor: codes of training images", on_event=on_event)
    finite, knn_top1 = bool(vectors.isfinite().all()), None
    if finite and labels is not None and labels.min() < labels.max():  # of one class all neighbours are right
        asked = limited(monitored, min(QUERY_COUNT, len(monitored)))
        queries, _, answers = _codes(setup, encoder, asked, task="monitor: k-NN queries", on_event=on_event)
        labelled = answers is not None and min(int(labels.min()), int(answers.min())) >= 0  # -1: an image without a label
        if answers is not None and labelled and queries.isfinite().all():
            similarities, rows = nearest(bank, queries, min(NEIGHBOURS, len(bank)))
            classes = int(max(labels.max(), answers.max())) + 1
            knn_top1 = topk_percent(vote(similarities, labels[rows], classes, temperature=TEMPERATURE), answers, 1)
    unit = vectors.square().mean().sqrt().clamp(min=torch.finfo(vectors.dtype).tiny)  # a code of zeros has deviation 0
    return RunQuality(
        mace_px=_decoder_mace(setup, on_event=on_event),
        constant_mace_px=constant_mace(setup),
        knn_top1=knn_top1,
        rankme=effective_rank(vectors) if finite else None,
        rankme_max=min(vectors.shape),
        code_std=column_std(vectors / unit) if finite else None,
    )


def _baseline(setup: TrainingSetup, indices: Tensor, *, on_event: OnEvent) -> Encoder:
    images = setup.open_for_evaluation(indices)
    context = Context(setup.accelerator.device, seed=setup.config.seed, on_event=on_event)
    return prepare_baseline(copy.deepcopy(setup.net.encoder), images, setup.size, context=context)


def _codes(
    setup: TrainingSetup, encoder: Encoder, indices: Tensor, *, task: str, on_event: OnEvent
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the mean codes of training images: pooled to 4x4, (n, d), and to vectors, (n, C); and labels, (n,).

    Images that cannot be used are left out.
    """
    images = setup.open_for_evaluation(indices)
    maps, vectors = [], []
    for _, code in read_codes(encoder, images, setup.size, task=task, on_event=on_event):
        maps.append(pool_features(code, "avg", SIDE).flatten(1))
        vectors.append(pool_features(code, "avg", 1).flatten(1))
    usable, labels = setup.bad_images.usable(indices), setup.data.train.labels
    labels = None if labels is None else labels[indices][usable]
    return torch.cat(maps)[usable], torch.cat(vectors)[usable], labels


def _decoder_mace(setup: TrainingSetup, *, on_event: OnEvent) -> float | None:
    if not _decodes_corners(setup):
        return None
    pairs = sample_pairs(setup.open_for_evaluation(setup.monitored), setup.family, setup.size, key=_pairs_key(setup))
    mean, _ = predict(setup.net, pairs, task="monitor: corner error", on_event=on_event)
    mace_px = float(corner_errors(pairs, mean)[setup.bad_images.usable(setup.monitored)].mean())
    return mace_px if isfinite(mace_px) else None


def constant_mace(setup: TrainingSetup) -> float | None:
    """Return the corner error in pixels of the distribution's mean on the monitored images' transformations, where defined."""
    if not _decodes_corners(setup):
        return None
    parameters = setup.family.sample(len(setup.monitored), setup.size, keyed_generator(*_pairs_key(setup)))
    true = setup.family.in_from_out(parameters[setup.bad_images.usable(setup.monitored)], setup.size)
    return float(corner_error(true, mean_matrix(setup.family, setup.size).expand_as(true), setup.size).mean())


def _decodes_corners(setup: TrainingSetup) -> bool:
    return setup.net.objective.prediction == "target" and setup.family.kind != "photometric"


def _pairs_key(setup: TrainingSetup) -> tuple[int | str, ...]:
    return setup.config.seed, "held out"
