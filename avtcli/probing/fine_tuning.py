"""Fine-tuning: a copy of an encoder trained together with a head, and the supervised backbone that is made so."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from avtcli.features.feature_reader import Feature
from avtcli.models.encoder import Encoder
from avtcli.probing.head_training import Curve, Part, figures_of, train_heads
from avtcli.probing.planned_heads import HeadPlan
from avtcli.probing.probe_setup import Draw, Figures, Found, Job, split_held_out


def tuned_heads(job: Job, encoder: Encoder, name: str) -> Iterator[Found]:
    """One head a feature and a draw, each trained with a copy of the encoder."""
    for feature in job.wanted:
        for draw in job.draws:
            task = " ".join([name, feature.layer, draw.words]).rstrip()
            figures, _ = _tune_best(job, encoder, feature, draw, task=task)
            yield feature, draw, figures


def supervised_encoder(job: Job, encoder: Encoder) -> Encoder:
    """A copy of an encoder, trained with the labels of all training images under a linear head on its last layer."""
    config = job.config.to_finetune()
    everything = Draw(torch.arange(len(job.labels["train"])), None, config.seed)
    last = Feature(list(encoder.backbone.taps)[-1], "avg", 1)
    _, tuned = _tune_best(replace(job, config=config), encoder, last, everything, task="supervised")
    return tuned.eval()


def _tune_best(job: Job, encoder: Encoder, feature: Feature, draw: Draw, *, task: str) -> tuple[Figures, Encoder]:
    """Fine-tune with the rate that is best on held-out images, or the only one; return the tuned encoder too."""
    config = job.config
    tune = partial(_tune, job, encoder, feature, seed=draw.seed)
    peaks: list[float | None] = [None] if config.schedule is not None else list(config.peaks)
    fit, held_out = split_held_out(draw.rows, job.labels["train"], config.held_out, seed=draw.seed)
    peak, val_top1 = peaks[len(peaks) // 2], None
    if len(peaks) > 1 and len(held_out):
        tops = [tune(p, fit, "train", held_out, task=f"{task}: rate {p:g}")[0][-1][0] for p in peaks]
        val_top1 = max(tops)
        peak = peaks[tops.index(val_top1)]
    everything = torch.arange(len(job.labels["test"]))
    curve, tuned = tune(peak, draw.rows, "test", everything, task=f"{task}: head")
    return figures_of(curve, val_top1, peak), tuned


def _tune(
    job: Job,
    encoder: Encoder,
    feature: Feature,
    peak: float | None,
    rows: Tensor,
    part: str,
    onto: Tensor,
    *,
    seed: int,
    task: str,
) -> tuple[Curve, Encoder]:
    """Train a copy of the encoder together with a head; the code is its mean, no noise is drawn."""
    tuned = copy.deepcopy(encoder)
    log_var, tuned.log_var = tuned.log_var, None
    readers = {name: job.forwarded(tuned, name, [feature]) for name in ("train", part)}
    (curve,) = train_heads(
        Part(readers["train"], rows),
        Part(readers[part], onto),
        [HeadPlan(feature, peak)],
        job.config,
        classes=job.classes,
        seed=seed,
        tuned=tuned,
        task=task,
        on_event=job.on_event,
    )
    tuned.log_var = log_var
    return curve, tuned
