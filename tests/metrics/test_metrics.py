"""Metrics against scikit-learn, scipy, published and hand-computed values."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import rankdata
from sklearn.metrics import r2_score, top_k_accuracy_score
from torch import Tensor

from avtcli import registry
from avtcli.errors import AvtError
from avtcli.geometry.homography import corner_turns, in_from_out_from_corners, matrix_from_coefficients
from avtcli.metrics.accuracy import topk_hits, topk_percent
from avtcli.metrics.feature_statistics import column_std, effective_rank
from avtcli.metrics.transformation_error import corner_error, r2_scores, retrieval_ranks, retrieval_scores
from avtcli.seeding import keyed_generator
from avtplugins.transforms.projective import move_corners


@pytest.mark.parametrize(("side", "identity", "constant"), [(32, 29.0, 23.5), (224, 202, 164)])
def test_trivial_predictors_have_the_known_corner_errors(side: int, identity: float, constant: float) -> None:
    size = (side, side)
    family = registry.build("transform", "projective", {})
    drawn = family.sample(100_000, size, keyed_generator("test"))
    true = family.in_from_out(drawn, size)
    mean = matrix_from_coefficients(drawn.mean(0, keepdim=True)).expand(len(true), -1, -1)

    assert corner_error(true, torch.eye(3, dtype=torch.float64).expand_as(true), size).mean() == pytest.approx(
        identity, rel=0.01
    )
    assert corner_error(true, mean, size).mean() == pytest.approx(constant, rel=0.01)


def test_the_corner_error_of_a_shift_is_its_length() -> None:
    shift = torch.eye(3, dtype=torch.float64)[None].clone()
    shift[0, :2, 2] = torch.tensor([3.0, 4.0])

    assert corner_error(shift, torch.eye(3, dtype=torch.float64)[None], (10, 20)).tolist() == [5.0]


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (24, 60)])
def test_the_turn_of_every_projective_sample_is_the_one_that_was_drawn(size: tuple[int, int]) -> None:
    n, generator = 100_000, keyed_generator("turns")
    family = registry.build("transform", "projective", {})
    matrices = family.in_from_out(family.sample(n, size, keyed_generator("turns")), size)
    torch.rand(n, generator=generator, dtype=torch.float64)  # the scale is drawn first
    turns, rest = corner_turns(matrices, size)

    assert torch.equal(turns, torch.randint(4, (n,), generator=generator))
    assert 10 < rest.max() < 18


def test_the_turn_is_right_for_the_largest_shifts_in_all_directions() -> None:
    size, shifts = (32, 32), torch.tensor(list(itertools.product((-4.0, 4.0), repeat=8))).double().reshape(-1, 4, 2)
    for scale, rotation in itertools.product((0.8, 1.2), range(4)):
        rotations = torch.full((len(shifts),), rotation)
        corners = move_corners(size, shift=shifts, scale=torch.full((len(shifts),), scale).double(), rotation=rotations)

        assert torch.equal(corner_turns(in_from_out_from_corners(corners, size), size)[0], rotations)


def test_the_turn_of_a_rotation_is_its_angle_and_of_a_point_none() -> None:
    degrees = torch.tensor([0.0, 30, -30, 100, 170, 260]).double()
    cos, sin, zero, one = (degrees * math.pi / 180).cos(), (degrees * math.pi / 180).sin(), degrees * 0, degrees * 0 + 1
    # about the centre (16, 16), clockwise as y points down: the corner (0, 0) goes towards (32, 0)
    out_from_in = torch.stack(
        [cos, -sin, 16 - 16 * cos + 16 * sin, sin, cos, 16 - 16 * sin - 16 * cos, zero, zero, one], 1
    ).reshape(-1, 3, 3)
    turns, rest = corner_turns(torch.linalg.inv(out_from_in), (32, 32))
    point = matrix_from_coefficients(torch.tensor([[0.0, 0, 16, 0, 0, 16, 0, 0], [torch.nan] * 8]).double())

    assert turns.tolist() == [0, 0, 0, 1, 2, 3]
    assert rest.tolist() == pytest.approx([0, 30, 30, 10, 10, 10])
    assert corner_turns(point, (32, 32))[0].tolist() == [-1, -1]


@pytest.mark.parametrize("k", [1, 3])
def test_top_k_is_scikit_learns(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 6, generator=generator), torch.randint(6, (200,), generator=generator)

    assert topk_percent(logits, labels, k) == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=k))


def test_equal_logits_count_in_the_order_of_the_classes() -> None:
    assert topk_percent(torch.zeros(4, 4), torch.arange(4), 1) == 25.0


def test_logits_that_are_not_numbers_hit_nothing() -> None:
    assert topk_percent(torch.full((4, 4), torch.nan), torch.arange(4), 1) == 0.0


def test_hits_of_several_classifiers_are_those_of_each() -> None:
    logits, labels = torch.randn(3, 40, 7, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 7
    expected = [round(40 * top_k_accuracy_score(labels, own, k=2)) for own in logits]

    assert topk_hits(logits, labels, 2).tolist() == expected


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=keyed_generator("test", *shape), dtype=torch.float64)


def test_r2_is_scikit_learns_by_column_and_pooled() -> None:
    truth = noise(80, 3) * torch.tensor([1.0, 10.0, 0.1]) + 4
    predicted = truth + noise(3, 80).T * torch.tensor([0.5, 3.0, 0.2])
    scores, pooled = r2_scores(predicted, truth)

    np.testing.assert_allclose(scores, r2_score(truth, predicted, multioutput="raw_values"))
    assert pooled == pytest.approx(r2_score(truth, predicted, multioutput="variance_weighted"))


def test_predicting_the_mean_scores_zero_and_the_truth_scores_one() -> None:
    truth = noise(50, 2)

    assert r2_scores(truth, truth)[0].tolist() == [1.0, 1.0]
    torch.testing.assert_close(r2_scores(truth.mean(0).expand_as(truth), truth)[0], torch.zeros(2, dtype=torch.float64))


def test_a_constant_column_scores_nan_and_is_not_pooled() -> None:
    truth, predicted = noise(48, 2), noise(6, 16).view(48, 2)
    flat = torch.full((48, 1), 0.1, dtype=torch.float64)  # its computed mean is not 0.1
    scores, pooled = r2_scores(torch.cat([predicted, flat + 1], 1), torch.cat([truth, flat], 1))

    assert scores.isnan().tolist() == [False, False, True]
    assert pooled == r2_scores(predicted, truth)[1]
    assert math.isnan(r2_scores(flat, flat)[1])


def test_retrieval_ranks_are_those_of_scipy() -> None:
    true = noise(6, 20, 4).round()  # rounded, so that many distances are equal
    decoded = (true + noise(6, 4, 20).transpose(1, 2)).round()
    expected = [[rankdata(row)[i] for i, row in enumerate(cdist(d, t))] for d, t in zip(decoded, true, strict=True)]
    ranks = retrieval_ranks(decoded, true)

    assert ranks.dtype == torch.float64
    assert (ranks % 1 == 0.5).any()
    assert ranks.tolist() == expected


def test_a_constant_decoder_has_the_mean_rank_a_perfect_one_the_first() -> None:
    true = noise(5, 9, 3)

    assert retrieval_ranks(torch.zeros_like(true), true).mean(1).tolist() == [5.0] * 5
    assert retrieval_scores(retrieval_ranks(true, true)) == (1.0, [1.0, 1.0])


def test_versions_with_the_same_parameters_share_their_rank() -> None:
    assert retrieval_ranks(torch.zeros(1, 4, 2), torch.ones(1, 4, 2)).tolist() == [[2.5, 2.5, 2.5, 2.5]]


def test_retrieval_scores_are_those_computed_by_hand() -> None:
    mrr, (first, among_three) = retrieval_scores(torch.tensor([[1.0, 2.0], [4.0, 4.0]]), hits=(1, 3))

    assert (mrr, first, among_three) == (0.5, 0.25, 0.5)


def test_nan_predictions_are_refused_in_retrieval() -> None:
    with pytest.raises(AvtError, match="contain infinities or NaN, so nothing can be measured"):
        retrieval_ranks(torch.full((1, 3, 2), torch.nan), torch.ones(1, 3, 2))


@pytest.mark.parametrize("shape", [(60, 7), (7, 60)])
def test_the_effective_rank_follows_from_eigenvalues_of_the_gram_matrix(shape: tuple[int, int]) -> None:
    features = (noise(*shape) @ torch.diag(torch.linspace(0.2, 3, shape[1], dtype=torch.float64))).numpy()
    smaller = min(features @ features.T, features.T @ features, key=len)
    singular = np.sqrt(np.linalg.eigvalsh(smaller))
    p = singular / singular.sum() + 1e-7

    assert effective_rank(torch.from_numpy(features)) == pytest.approx(np.prod(p**-p), rel=1e-9)


def test_the_effective_rank_of_k_equal_directions_is_k() -> None:
    assert effective_rank(5 * torch.eye(12, 8)) == pytest.approx(8, rel=1e-4)
    assert effective_rank(torch.eye(12, 8).repeat(1, 3)) == pytest.approx(8, rel=1e-4)


def test_collapsed_features_have_effective_rank_one_and_no_deviation() -> None:
    for collapsed in (torch.full((40, 6), 3.0), torch.zeros(40, 6)):
        assert effective_rank(collapsed) == pytest.approx(1, abs=1e-4)
        assert column_std(collapsed) == 0


def test_the_effective_rank_of_infinite_features_is_refused() -> None:
    with pytest.raises(AvtError, match="contain infinities or NaN, so nothing can be measured"):
        effective_rank(torch.tensor([[1.0, torch.inf]]))


def test_column_std_is_the_mean_of_numpys_standard_deviations() -> None:
    features = noise(30, 5) * torch.arange(5) + 100

    assert column_std(features) == pytest.approx(features.numpy().std(0).mean())
