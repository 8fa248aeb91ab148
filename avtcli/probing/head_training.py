"""Training of heads: all heads of a probe on the same batches, in one pass over the images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from avtcli.config.probe_config import ProbeConfig
from avtcli.data.epoch_table import batch_bounds
from avtcli.events import Progress
from avtcli.features.feature_reader import Feature, FeatureReader, Features
from avtcli.metrics.accuracy import topk_hits
from avtcli.probing.head import HeadFigures, TrainedHead
from avtcli.probing.joint_heads import Heads, HeadSpec, fit_batch, start_heads
from avtcli.probing.probe_setup import ProbeSetup, Subset, split_held_out
from avtcli.runtime.capture import CapturedCalls
from avtcli.runtime.devices import Context, seed_model, upload
from avtcli.runtime.execution import choose_fused
from avtcli.seeding import keyed_generator, seed_of
from avtcli.training.optimizer import cosine_rate, make_optimizer, scheduled_rate

PROGRESS_STEPS = 20  # between two reports of the progress

Curve = list[tuple[float, float]]
"""(top-1, top-5) in percent at each evaluation."""


@dataclass(frozen=True)
class RowSubset:
    """Some images of a reader: rows, (n,) int64, on the CPU."""

    reader: FeatureReader
    rows: Tensor


@dataclass(frozen=True)
class HeadTraining:
    """What heads that are trained together share.

    The context's seed is that of the weights, the image order, the crops and flips; `task` is a name for the progress.
    """

    head: TrainedHead
    config: ProbeConfig
    classes: int
    context: Context
    task: str


Runner = Callable[[HeadTraining, Sequence[HeadSpec], Tensor, Tensor | None], list[Curve]]
"""Trains heads on some training images, and evaluates them on held-out training images, or where they are none on test."""


def rate_of(config: ProbeConfig, peak: float | None, *, epoch: int, progress: float) -> float:
    """The learning rate of a step, by the schedule scaled to the epochs to run, else by a cosine from `peak`.

    Pieces are constant within an epoch, as published; a cosine changes with `progress`, the share of all steps that is done.
    """
    schedule = config.schedule
    if schedule is None:
        assert peak is not None
        return cosine_rate(progress, peak=peak, warmup=0)
    return scheduled_rate(schedule, epoch=epoch * schedule.epochs / config.total_epochs, progress=progress)


def train_heads(
    train: RowSubset, test: RowSubset, specs: Sequence[HeadSpec], training: HeadTraining, *, tuned: nn.Module | None = None
) -> list[Curve]:
    """Train heads side by side, each with its own loss and rate; those on one feature start from the same weights.

    They are evaluated on `test` after each epoch of a schedule, as in the release, else after the last only. `tuned`, the
    reader's encoder, is trained too, at the first head's rate.

    Raises:
        AvtError: for a head that does not fit its feature.
    """
    config, seed, device = training.config, training.context.seed, train.reader.labels.device
    heads = start_heads(specs, train.reader, training.head, classes=training.classes, seed=seed, tuned=tuned is not None)
    optimizer = _build_optimizer(heads, specs, config, device=device, tuned=tuned)
    fitting = Fitting(heads, optimizer, device, captured=tuned is None)
    curves: list[Curve] = [[] for _ in specs]
    detail = ""
    for epoch in range(config.total_epochs):
        if tuned is not None:
            tuned.train()
            seed_model(seed_of(seed, epoch, "model"), device)
        steps = _train_epoch(fitting, train, training, epoch=epoch, detail=detail)
        if config.schedule is not None or epoch + 1 == config.total_epochs:
            if tuned is not None:
                tuned.eval()
            for curve, scores in zip(curves, score(heads, test), strict=True):
                curve.append(scores)
            detail = f"{max(curve[-1][0] for curve in curves):.2f} % after epoch {epoch + 1}"
        training.context.on_event(Progress(training.task, (epoch + 1) * steps, config.total_epochs * steps, "steps", detail))
    return curves


def _build_optimizer(
    heads: Heads, specs: Sequence[HeadSpec], config: ProbeConfig, *, device: torch.device, tuned: nn.Module | None
) -> torch.optim.Optimizer:
    """One parameter group for each peak; the encoder's parameters are in the first."""
    groups: dict[float | None, list[nn.Parameter]] = {}
    for parameters, spec in zip(heads.parameters, specs, strict=True):
        groups.setdefault(spec.peak, []).extend(parameters)
    if tuned is not None:
        groups[specs[0].peak] += [p for p in tuned.parameters() if p.requires_grad]
    tables: list[dict[str, Any]] = [{"params": parameters, "peak": peak} for peak, parameters in groups.items()]
    optimizer = make_optimizer(tables, choose_fused(config.optimizer, device.type))
    for group in optimizer.param_groups:
        group["capturable"] = device.type == "cuda"
    return optimizer


class Fitting:
    """The training steps of heads: on a GPU one CUDA graph, which all full batches share.

    Args:
        heads: the heads.
        optimizer: of their parameters, and of an encoder's.
        captured: whether to capture, where the device can.
    """

    def __init__(self, heads: Heads, optimizer: torch.optim.Optimizer, device: torch.device, *, captured: bool) -> None:
        self.heads, self.optimizer = heads, optimizer
        self._calls: CapturedCalls[None] = CapturedCalls(device, enabled=captured)

    def step(self, features: Features, labels: Tensor, rates: Tensor, *, full: bool) -> None:
        """Fit a batch, a full one or the rest of an epoch, at the rate of each parameter group, (groups,); see `fit_batch`."""

        def work() -> None:
            values = rates.unbind() if rates.is_cuda else rates.tolist()  # a graph reads its rates from the device
            for group, rate in zip(self.optimizer.param_groups, values, strict=True):
                group["lr"] = rate
            fit_batch(self.heads, features, labels)
            self.optimizer.step()
            self.optimizer.zero_grad()

        if full:
            self._calls([*features.values(), labels, rates], work)
        else:
            work()


def _train_epoch(fitting: Fitting, train: RowSubset, training: HeadTraining, *, epoch: int, detail: str) -> int:
    """Train for an epoch, and return its number of steps; a GPU that holds the features is not waited for."""
    config, seed, labels = training.config, training.context.seed, train.reader.labels
    order = train.rows[torch.randperm(len(train.rows), generator=keyed_generator(seed, "order", epoch))]
    bounds = batch_bounds(len(order), config.batch_size)
    truth, first, total = labels[upload(order, labels.device)], epoch * len(bounds), config.total_epochs * len(bounds)
    rates = _rates_of_epoch(fitting.optimizer, config, epoch=epoch, steps=len(bounds), device=labels.device)
    batches = train.reader.read_batches([order[start:stop] for start, stop in bounds], epoch_key=(seed, epoch))
    for index, (features, (start, stop)) in enumerate(zip(batches, bounds, strict=True)):
        fitting.step(features, truth[start:stop], rates[index], full=stop - start == config.batch_size)
        if (first + index) % PROGRESS_STEPS == 0:
            training.context.on_event(Progress(training.task, first + index, total, "steps", detail))
    return len(bounds)


def _rates_of_epoch(
    optimizer: torch.optim.Optimizer, config: ProbeConfig, *, epoch: int, steps: int, device: torch.device
) -> Tensor:
    """The rates of an epoch's steps and parameter groups, (steps, groups): on a GPU in float32, else in float64 on the CPU."""
    done, peaks = epoch * steps, [group["peak"] for group in optimizer.param_groups]
    shares = [(done + step) / (config.total_epochs * steps) for step in range(steps)]
    rows = [[rate_of(config, peak, epoch=epoch, progress=share) for peak in peaks] for share in shares]
    table = torch.tensor(rows, dtype=torch.float64)
    return upload(table.float(), device) if device.type == "cuda" else table


def choose_and_train(
    setup: ProbeSetup, features: Sequence[Feature], subset: Subset, run: Runner, *, task: str
) -> list[HeadFigures]:
    """Train one head for each feature on a subset, at the rate that is best on held-out images where there is a choice."""
    assert isinstance(setup.head, TrainedHead)
    config, context = setup.config, replace(setup.context, seed=subset.seed)
    training = HeadTraining(setup.head, config, setup.classes, context, f"{task}: head")
    rates: list[float | None] = [None] if config.schedule is not None else [*config.learning_rates]
    best: list[tuple[HeadSpec, float | None]] = [(HeadSpec(feature, rates[len(rates) // 2]), None) for feature in features]
    fit, held_out = split_held_out(subset.rows, setup.train.labels, seed=subset.seed)
    if len(rates) > 1 and len(held_out):
        specs = [HeadSpec(feature, rate) for feature in features for rate in rates]
        curves = run(replace(training, task=f"{task}: rate"), specs, fit, held_out)
        scored = [(spec, curve[-1][0]) for spec, curve in zip(specs, curves, strict=True)]
        own = [[pair for pair in scored if pair[0].feature == feature] for feature in features]
        best = [max(pairs, key=lambda pair: pair[1]) for pairs in own]  # the first, so the largest, of equally good rates
    figures = []
    for curve, (spec, val_top1) in zip(run(training, [spec for spec, _ in best], subset.rows, None), best, strict=True):
        chosen = {} if spec.peak is None else {"rate": spec.peak}
        figures.append(HeadFigures(*curve[-1], val_top1, chosen, None if chosen else max(top1 for top1, _ in curve)))
    return figures


@torch.no_grad()
def score(heads: Heads, test: RowSubset) -> Curve:
    """Top-1 and top-5 in percent of each head."""
    labels, batches = test.reader.labels, torch.split(test.rows, test.reader.eval_batch)
    hits = torch.zeros(2, len(heads.parameters), dtype=torch.int64, device=labels.device)
    truth = torch.split(labels[upload(test.rows, labels.device)], test.reader.eval_batch)
    for own, features in zip(truth, test.reader.read_batches(batches, epoch_key=None), strict=True):
        logits = torch.stack(heads.logits(features, training=False))
        hits += torch.stack([topk_hits(logits, own, k) for k in (1, min(5, logits.shape[2]))])
    return [(100 * first / len(test.rows), 100 * fifth / len(test.rows)) for first, fifth in hits.T.tolist()]
