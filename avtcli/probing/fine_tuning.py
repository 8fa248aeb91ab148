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
from avtcli.probing.probe_setup import Figures, Found, ProbeSetup, Subset, split_held_out


def tuned_heads(setup: ProbeSetup, encoder: Encoder, name: str) -> Iterator[Found]:
    """One head a feature and a subset, each trained with a copy of the encoder."""
    for feature in setup.wanted:
        for subset in setup.subsets:
            task = " ".join([name, feature.layer, subset.words]).rstrip()
            figures, _ = _tune_best(setup, encoder, feature, subset, task=task)
            yield feature, subset, figures


def supervised_encoder(setup: ProbeSetup, encoder: Encoder) -> Encoder:
    """A copy of an encoder, trained with the labels of all training images under a linear head on its last layer."""
    config = setup.config.to_finetune()
    everything = Subset(torch.arange(len(setup.labels["train"])), None, config.seed)
    last = Feature(list(encoder.backbone.taps)[-1], "avg", 1)
    _, tuned = _tune_best(replace(setup, config=config), encoder, last, everything, task="supervised")
    return tuned.eval()


def _tune_best(setup: ProbeSetup, encoder: Encoder, feature: Feature, subset: Subset, *, task: str) -> tuple[Figures, Encoder]:
    """Fine-tune with the rate that is best on held-out images, or the only one; return the tuned encoder too."""
    config = setup.config
    tune = partial(_tune, setup, encoder, feature, seed=subset.seed)
    learning_rates: list[float | None] = [None] if config.schedule is not None else list(config.learning_rates)
    fit, held_out = split_held_out(subset.rows, setup.labels["train"], config.held_out, seed=subset.seed)
    peak, val_top1 = learning_rates[len(learning_rates) // 2], None
    if len(learning_rates) > 1 and len(held_out):
        tops = [tune(p, fit, "train", held_out, task=f"{task}: rate {p:g}")[0][-1][0] for p in learning_rates]
        val_top1 = max(tops)
        peak = learning_rates[tops.index(val_top1)]
    everything = torch.arange(len(setup.labels["test"]))
    curve, tuned = tune(peak, subset.rows, "test", everything, task=f"{task}: head")
    return figures_of(curve, val_top1, peak), tuned


def _tune(
    setup: ProbeSetup,
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
    readers = {name: setup.forwarded(tuned, name, [feature]) for name in ("train", part)}
    (curve,) = train_heads(
        Part(readers["train"], rows),
        Part(readers[part], onto),
        [HeadPlan(feature, peak)],
        setup.config,
        classes=setup.classes,
        seed=seed,
        tuned=tuned,
        task=task,
        on_event=setup.on_event,
    )
    tuned.log_var = log_var
    return curve, tuned
