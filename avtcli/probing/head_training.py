"""Training heads on frozen features: all heads of a probe on the same batches, in one pass over the images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avtcli.config.probe_config import ProbeConfig
from avtcli.data.epoch_table import batch_bounds
from avtcli.events import OnEvent, Progress
from avtcli.features.feature_reader import FeatureReader
from avtcli.metrics.accuracy import topk_hits
from avtcli.probing.planned_heads import HeadPlan, Heads, start_heads
from avtcli.probing.probe_setup import Figures
from avtcli.runtime.devices import seed_model
from avtcli.runtime.execution import choose_fused
from avtcli.seeding import keyed_generator, seed_of
from avtcli.training.optimizer import cosine_rate, make_optimizer, scheduled_rate

TELL_EVERY = 20  # steps between tellings of the progress

Curve = list[tuple[float, float]]
"""(top-1, top-5) in percent, each time that they were measured."""


@dataclass(frozen=True)
class Part:
    """Some of a reader's images: rows, (n,) int64, on the CPU."""

    reader: FeatureReader
    rows: Tensor


def rate_of(config: ProbeConfig, peak: float | None, *, epoch: int, progress: float) -> float:
    """The learning rate of a step.

    Args:
        config: the schedule, stretched or shrunk to the epochs to run. Pieces are constant within an epoch, as published; a
            cosine moves each step.
        peak: of the head's own cosine, where there is no schedule.
        epoch: counted from 0.
        progress: the share of all steps that is done.
    """
    schedule = config.schedule
    if schedule is None:
        assert peak is not None
        return cosine_rate(progress, peak=peak, warmup=0)
    return scheduled_rate(schedule, epoch=epoch * schedule.epochs / config.total_epochs, progress=progress)


def train_heads(
    train: Part,
    test: Part,
    plans: Sequence[HeadPlan],
    config: ProbeConfig,
    *,
    classes: int,
    seed: int,
    tuned: nn.Module | None = None,
    task: str,
    on_event: OnEvent,
) -> list[Curve]:
    """Train heads side by side, each by its own loss and rate.

    Args:
        train: to learn from; two images at least.
        test: to measure on: after each epoch of a schedule, as the release does, else after the last alone.
        plans: the heads, in any order; linear ones as many on each feature of the reader. Those on one feature start from the
            same weights.
        config: head, schedule, epochs, batch size and optimiser.
        classes: the number of classes.
        seed: of the weights, the order, the crops and flips.
        tuned: the encoder of the readers, to be trained too, with the first head's rate; none leaves it frozen.
        task: its name in the progress.
        on_event: told how far it is.

    Returns:
        A curve for each plan.

    Raises:
        AvtError: for a head that does not fit its feature.
    """
    heads = start_heads(plans, train.reader, config, classes=classes, seed=seed, tuned=tuned is not None)
    learning_rates = list(dict.fromkeys(plan.peak for plan in plans))
    groups: list[dict[str, Any]] = [{"params": []} for _ in learning_rates]  # one a rate
    for parameters, plan in zip(heads.parameters, plans, strict=True):
        groups[learning_rates.index(plan.peak)]["params"] += parameters
    if tuned is not None:
        groups[0]["params"] += [p for p in tuned.parameters() if p.requires_grad]
    optimizer = make_optimizer(groups, choose_fused(config.optimizer, train.reader.labels.device.type))
    bounds = batch_bounds(len(train.rows), config.batch_size)
    steps = config.total_epochs * len(bounds)
    curves: list[Curve] = [[] for _ in plans]
    detail = ""
    for epoch in range(config.total_epochs):
        if tuned is not None:
            tuned.train()
            seed_model(seed_of(seed, epoch, "model"), train.reader.labels.device)
        order = train.rows[torch.randperm(len(train.rows), generator=keyed_generator(seed, "order", epoch))]
        batches = [order[first:last] for first, last in bounds]
        for index, batch in enumerate(train.reader.read_batches(batches, drawn=(seed, epoch))):
            labels = train.reader.labels[batches[index].to(train.reader.labels.device)]
            step = epoch * len(bounds) + index
            for group, peak in zip(optimizer.param_groups, learning_rates, strict=True):
                group["lr"] = rate_of(config, peak, epoch=epoch, progress=step / steps)
            heads.fit_batch(batch, labels)
            optimizer.step()
            optimizer.zero_grad()
            if step % TELL_EVERY == 0:
                on_event(Progress(task, step, steps, "steps", detail))
        if config.schedule is not None or epoch + 1 == config.total_epochs:
            if tuned is not None:
                tuned.eval()
            for curve, scores in zip(curves, score(heads, test), strict=True):
                curve.append(scores)
            detail = f"{max(curve[-1][0] for curve in curves):.2f} % after epoch {epoch + 1}"
        on_event(Progress(task, (epoch + 1) * len(bounds), steps, "steps", detail))
    return curves


def figures_of(curve: Curve, val_top1: float | None, peak: float | None) -> Figures:
    """What is reported of a head: the last epoch, with the peak of its rate, or beside the best epoch of a schedule."""
    top1, top5 = curve[-1]
    if peak is None:
        return Figures(top1, top5, val_top1, {}, max(top1 for top1, _ in curve))
    return Figures(top1, top5, val_top1, {"rate": peak})


@torch.no_grad()
def score(heads: Heads, test: Part) -> Curve:
    """Top-1 and top-5 in percent of each head."""
    batches = list(torch.split(test.rows, test.reader.plain_batch))
    labels, hits = test.reader.labels, [[0, 0] for _ in heads.parameters]
    for rows, batch in zip(batches, test.reader.read_batches(batches, drawn=None), strict=True):
        truth = labels[rows.to(labels.device)]
        for mine, logits in zip(hits, heads(batch), strict=True):
            for place, k in enumerate((1, min(5, len(logits)))):
                mine[place] += topk_hits(logits.T, truth, k)
    return [(100 * first / len(test.rows), 100 * fifth / len(test.rows)) for first, fifth in hits]
