"""Exact neighbours and their vote against scikit-learn, and the order of equals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from avtcli.errors import AvtError, ShapeError
from avtcli.metrics import knn
from avtcli.metrics.accuracy import topk_hits
from avtcli.metrics.knn import nearest, vote
from avtcli.seeding import keyed_generator


def data(m: int = 300, n: int = 40, d: int = 12, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """A bank, queries and the bank's labels; float64."""
    generator = keyed_generator("test", m, n, d)
    bank, queries = (torch.randn(rows, d, generator=generator, dtype=torch.float64) + 0.3 for rows in (m, n))
    return bank, queries, torch.randint(classes, (m,), generator=generator)


def crowded(rows: int, *key: str) -> Tensor:
    """Unit vectors of few directions, so that float32 is exact and most cosines are tied."""
    return torch.eye(3)[torch.randint(3, (rows,), generator=keyed_generator("test", *key))]


def oracle(bank: Tensor, labels: Tensor, k: int, temperature: float | None) -> KNeighborsClassifier:
    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / temperature)

    chosen = "uniform" if temperature is None else weights
    return KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=chosen).fit(bank.numpy(), labels.numpy())


def test_neighbours_and_similarities_are_scikit_learns() -> None:
    bank, queries, labels = data()
    similarities, rows = nearest(bank, queries, 7)
    distances, expected = oracle(bank, labels, 7, None).kneighbors(queries.numpy())

    assert rows.dtype == torch.int64
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-12)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_votes_are_scikit_learns(temperature: float | None) -> None:
    bank, queries, labels = data()
    similarities, rows = nearest(bank, queries, 9)
    votes = vote(similarities, labels[rows], 5, temperature=temperature)
    expected = oracle(bank, labels, 9, temperature).predict_proba(queries.numpy())

    votes = votes.clamp(min=0)
    np.testing.assert_allclose(votes / votes.sum(1, keepdim=True), expected, atol=1e-12)


def test_tied_classes_rank_as_in_scikit_learn() -> None:
    bank, queries, labels = data(classes=3)
    similarities, rows = nearest(bank, queries, 4)
    votes = vote(similarities, labels[rows], 3, temperature=None)
    top = votes.sort(descending=True, stable=True)

    assert (top.values[:, 0] == top.values[:, 1]).any()
    np.testing.assert_array_equal(top.indices[:, 0], oracle(bank, labels, 4, None).predict(queries.numpy()))


@pytest.mark.parametrize("block_bytes", [2**26, 100])
@pytest.mark.parametrize("k", [1, 4, 60])
def test_ties_are_broken_by_the_smaller_row_also_at_the_last_place(
    k: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "BLOCK_BYTES", block_bytes)
    bank, queries = crowded(60, "bank"), crowded(25, "queries")
    cosines = queries.numpy() @ bank.numpy().T
    expected = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    similarities, rows = nearest(bank, queries, k)

    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(similarities, np.take_along_axis(cosines, expected, 1))


@pytest.mark.parametrize("block_bytes", [500, 5000])
def test_the_size_of_the_blocks_does_not_change_the_neighbours(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries, _ = data(m=70, n=30)
    whole = nearest(bank, queries, 11)
    monkeypatch.setattr(knn, "BLOCK_BYTES", block_bytes)
    similarities, rows = nearest(bank, queries, 11)

    assert torch.equal(rows, whole[1])
    torch.testing.assert_close(similarities, whole[0], rtol=0, atol=1e-13)


def test_the_length_of_a_feature_does_not_change_its_cosine() -> None:
    bank, queries, _ = data()
    lengths = torch.logspace(-3, 3, len(bank), dtype=torch.float64)[:, None]

    assert torch.equal(nearest(bank * lengths, queries * 1e4, 9)[1], nearest(bank, queries, 9)[1])


def test_a_row_of_zeros_has_the_cosine_zero() -> None:
    similarities, rows = nearest(torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 0.0]]), 3)

    assert rows.tolist() == [[2, 1, 0]]
    assert similarities[0].tolist() == pytest.approx([2**-0.5, 0, -1])


def test_a_memory_mapped_bank_in_half_precision_is_compared_in_float32(tmp_path: Path) -> None:
    bank, queries, _ = data()
    bank.half().numpy().tofile(tmp_path / "bank")
    mapped = torch.from_file(str(tmp_path / "bank"), shared=False, size=bank.numel(), dtype=torch.float16).view_as(bank)
    similarities, rows = nearest(mapped, queries.float(), 6)
    expected = nearest(bank.half().double(), queries.float().double(), 6)

    assert similarities.dtype == torch.float32
    assert torch.equal(rows, expected[1])
    torch.testing.assert_close(similarities, expected[0].float(), rtol=0, atol=1e-6)


def test_small_temperatures_do_not_overflow_the_vote() -> None:
    similarities = torch.tensor([[1.0, 0.999, 0.999], [-50.0, -50.5, -51.0]])
    votes = vote(similarities, torch.tensor([[2, 0, 0], [1, 0, 2]]), 3, temperature=1e-4)

    assert not votes.isnan().any()
    assert votes.argmax(1).tolist() == [2, 1]


def test_more_neighbours_than_samples_are_refused() -> None:
    with pytest.raises(AvtError, match="Cannot find 4 neighbours among 3 samples; ask for 1 to 3"):
        nearest(torch.eye(3), torch.eye(3), 4)


def test_bank_and_queries_of_different_width_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"Bank \(3, 3\) and queries \(2, 2\) must be \(m, d\) and \(n, d\)"):
        nearest(torch.eye(3), torch.eye(2), 1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    broken = torch.eye(3).index_fill(0, torch.tensor([1]), bad)
    for bank, queries in ((broken, torch.eye(3)), (torch.eye(3), broken)):
        with pytest.raises(AvtError, match="contain infinities or NaN"):
            nearest(bank, queries, 1)


def test_classes_without_a_neighbour_are_no_hits() -> None:
    bank, queries, labels = data(classes=3)
    answers = torch.randint(3, (len(queries),), generator=keyed_generator("test", "answers"))
    similarities, rows = nearest(bank, queries, 1)
    votes = vote(similarities, labels[rows], 5, temperature=0.07)

    assert topk_hits(votes, answers, 5) == topk_hits(votes, answers, 1) == int((labels[rows[:, 0]] == answers).sum())


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_refused(label: int) -> None:
    with pytest.raises(AvtError, match=r"Labels must be from 0 to 1, found"):
        vote(torch.ones(1, 2), torch.tensor([[0, label]]), 2, temperature=None)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(AvtError, match=r"A temperature must be above 0, not 0\.0"):
        vote(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), 2, temperature=0.0)


@pytest.mark.parametrize("block_bytes", [2**26, 64])
def test_a_search_in_rows_is_a_search_in_a_bank_of_these_rows(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(knn, "BLOCK_BYTES", block_bytes)
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(40, 6, generator=generator), torch.randn(9, 6, generator=generator)
    rows = torch.randperm(40, generator=generator)[:17]

    torch.testing.assert_close(knn.nearest(bank, queries, 5, rows=rows), knn.nearest(bank[rows], queries, 5))
