"""Fine-tuning: a copy of an encoder is trained together with a head; the supervised backbone is made this way."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from avtcli.features.feature_reader import Feature
from avtcli.models.encoder import Encoder
from avtcli.probing.head import HeadFigures, TrainedHead
from avtcli.probing.head_training import Curve, HeadTraining, RowSubset, choose_and_train, train_heads
from avtcli.probing.heads import resolve_head
from avtcli.probing.joint_heads import HeadSpec
from avtcli.probing.probe_setup import HeadResult, ProbeSetup, Subset


def tuned_heads(setup: ProbeSetup, encoder: Encoder, name: str) -> Iterator[HeadResult]:
    """One head for each feature and subset, each trained with its own copy of the encoder; `name` is for the progress."""
    for feature in setup.wanted:
        for subset in setup.subsets:
            task = " ".join([name, feature.layer, subset.label]).rstrip()
            figures, _ = _tune_best(setup, encoder, feature, subset, task=task)
            yield setup.result(feature, subset, figures)


def supervised_encoder(setup: ProbeSetup, encoder: Encoder) -> Encoder:
    """A copy of an encoder, trained with the labels of all training images under a linear head on its last layer."""
    config = setup.config.to_finetune()
    everything = Subset(torch.arange(len(setup.train.labels)), None, config.seed)
    last = Feature(list(encoder.backbone.taps)[-1], "avg", 1)
    setup = replace(setup, config=config, head=resolve_head(config.head))
    _, tuned = _tune_best(setup, encoder, last, everything, task="supervised")
    return tuned.eval()


def _tune_best(
    setup: ProbeSetup, encoder: Encoder, feature: Feature, subset: Subset, *, task: str
) -> tuple[HeadFigures, Encoder]:
    """Fine-tune without code samples, at the rate that is best on held-out images; return the tuned encoder too."""
    assert isinstance(setup.head, TrainedHead)
    context = replace(setup.context, seed=subset.seed)
    training = HeadTraining(setup.head, setup.config, setup.classes, context, f"{task}: head")
    tuned = encoder

    def run(specs: Sequence[HeadSpec], rows: Tensor, held_out: Tensor | None) -> list[Curve]:
        nonlocal tuned
        curves: list[Curve] = []
        for spec in specs:
            tuned = copy.deepcopy(encoder)
            tuned.log_var = None
            readers = [setup.reader(tuned, data, [feature]) for data in (setup.train, setup.test)]
            target = RowSubset(readers[1], torch.arange(len(setup.test.labels)))
            if held_out is not None:
                target = RowSubset(readers[0], held_out)
            own = training if held_out is None else replace(training, task=f"{task}: rate {spec.peak:g}")
            curves += train_heads(RowSubset(readers[0], rows), target, [spec], own, tuned=tuned)
            tuned.log_var = copy.deepcopy(encoder.log_var)
        return curves

    (figures,) = choose_and_train([feature], subset, setup.train.labels, setup.config, run)
    return figures, tuned
