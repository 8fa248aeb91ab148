"""How good a representation is while it is trained: a few figures, always on the same images."""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from avtcli.contracts import Split
from avtcli.data.datasets import limited
from avtcli.data.held_out import MACE_COUNT, held_out_split
from avtcli.data.resident_images import EVAL_BATCH_SIZE, build_images, evaluation_batches
from avtcli.features.pooling import pool_features
from avtcli.features.transformed_pairs import held_out_mace
from avtcli.metrics.accuracy import topk_percent
from avtcli.metrics.feature_statistics import column_std, effective_rank
from avtcli.metrics.knn import nearest, vote
from avtcli.metrics.reference_predictors import mean_matrix
from avtcli.metrics.transformation_error import corner_error
from avtcli.seeding import keyed_generator
from avtcli.training.training_setup import TrainingSetup

BANK_COUNT, QUERY_COUNT = 1000, 500  # images, at most: enough to tell a few percent apart, few enough to cost no epoch
NEIGHBOURS, TEMPERATURE, SIDE = 20, 0.07, 4


@dataclass(frozen=True)
class RunQuality:
    """Figures of one evaluation; none where there is none, or where it is not finite.

    Attributes:
        mace_px: the decoder's corner error on 1 000 held-out images, as a run reports it at its end; none for photometric
            families and for objectives that predict classes.
        constant_mace_px: that of one which always says the distribution's mean coefficients, under the same transformations.
        knn_top1: percent of 500 test images that 1 000 labelled training images classify: the 20 nearest by cosine vote
            with temperature 0.07, on the mean code, average-pooled to 4x4 and flattened; none without labels or test split.
        rankme: the effective rank of the code averaged over its places, over 1 000 training images.
        rankme_max: what it could be at most.
        code_std: the standard deviation of the same over the images, mean over the channels, in units of their root mean
            square: 0 says that all images have one code. Without the unit it would follow the scale of the network, which
            is arbitrary where BatchNorm has no statistics yet.
    """

    mace_px: float | None
    constant_mace_px: float | None
    knn_top1: float | None
    rankme: float | None
    rankme_max: int
    code_std: float | None


def measure(setup: TrainingSetup) -> RunQuality:
    """Evaluate a network in eval mode; the images depend on the data alone, the transformations on the seed too."""
    train, test = setup.data.train, setup.data.test
    bank, vectors, labels = _codes(setup, train, BANK_COUNT)
    finite = bool(vectors.isfinite().all())
    knn_top1 = None
    if finite and labels is not None and test is not None and len(test) and test.labels is not None:
        queries, _, answers = _codes(setup, test, QUERY_COUNT)
        if answers is not None and queries.isfinite().all():
            knn_top1 = _knn_top1(bank, labels, queries, answers)
    unit = vectors.square().mean().sqrt().clamp(min=torch.finfo(vectors.dtype).tiny)  # a code of zeros has no column_std
    return RunQuality(
        mace_px=decoder_mace(setup),
        constant_mace_px=_constant_mace(setup),
        knn_top1=knn_top1,
        rankme=effective_rank(vectors) if finite else None,
        rankme_max=min(vectors.shape),
        code_std=column_std(vectors / unit) if finite else None,
    )


@torch.no_grad()
def _codes(setup: TrainingSetup, split: Split, count: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The mean codes of a split's draw: pooled to 4x4 and flattened, (n, d), and to vectors, (n, C); and the labels, (n,)."""
    indices = limited(split, min(count, len(split)))
    device, shorter = setup.accelerator.device, setup.config.augment.resize
    images = build_images(split, indices, device=device, shorter=shorter, workers=setup.workers)
    maps, vectors = [], []
    for batch in evaluation_batches(images, torch.split(torch.arange(len(images)), EVAL_BATCH_SIZE), setup.size):
        code = setup.net.encoder(setup.net.normalise(batch)).float().cpu().double()  # the square of a large code is finite
        maps.append(pool_features(code, "avg", SIDE).flatten(1))
        vectors.append(pool_features(code, "avg", 1).flatten(1))
    return torch.cat(maps), torch.cat(vectors), None if split.labels is None else split.labels[indices]


def _knn_top1(bank: Tensor, labels: Tensor, queries: Tensor, answers: Tensor) -> float:
    similarities, rows = nearest(bank, queries, min(NEIGHBOURS, len(bank)))
    classes = int(max(labels.max(), answers.max())) + 1
    return topk_percent(vote(similarities, labels[rows], classes, temperature=TEMPERATURE), answers, 1)


def decoder_mace(setup: TrainingSetup) -> float | None:
    """The corner error that a run reports at its end, of a network in eval mode; none where there is none, or not finite."""
    if setup.objective.predicts_classes:
        return None
    shorter, seed = setup.config.augment.resize, setup.config.seed
    mace_px = held_out_mace(setup.net, setup.family, setup.data, setup.size, shorter=shorter, workers=setup.workers, seed=seed)
    return mace_px if mace_px is not None and isfinite(mace_px) else None


def _constant_mace(setup: TrainingSetup) -> float | None:
    """That of the constant predictor, under the same transformations."""
    if setup.objective.predicts_classes or setup.family.kind == "photometric":
        return None
    count = min(MACE_COUNT, len(held_out_split(setup.data)[1]))
    drawn = setup.family.sample(count, setup.size, keyed_generator(setup.config.seed, "held out"))
    true = setup.family.in_from_out(drawn, setup.size)
    return float(corner_error(true, mean_matrix(setup.family, setup.size).expand_as(true), setup.size).mean())
