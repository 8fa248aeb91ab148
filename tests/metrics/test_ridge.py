"""Ridge regression against scikit-learn, and the choice of the penalty."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as Oracle
from sklearn.metrics import r2_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from avtcli.errors import AvtError, ShapeError
from avtcli.metrics import ridge
from avtcli.metrics.ridge import choose_ridge, fit_ridges
from avtcli.metrics.transformation_error import r2_scores
from avtcli.seeding import keyed_generator

SHAPES = {"primal": (90, 14), "dual": (25, 60)}


def data(n: int, d: int, m: int = 3) -> tuple[Tensor, Tensor]:
    """Features (n, d) float32 of very different scales and offsets, and noisy linear targets (n, m), float64."""
    generator = keyed_generator("test", n, d)
    x = torch.randn(n, d, generator=generator) * torch.logspace(-2, 2, d) + torch.linspace(-5, 20, d)
    standard = (x - x.mean(0)) / x.std(0)
    y = standard.double() @ torch.randn(d, m, generator=generator, dtype=torch.float64) + 7
    return x, y + torch.randn(n, m, generator=generator, dtype=torch.float64)


def oracle(x: Tensor, y: Tensor, penalty: float) -> Pipeline:
    return make_pipeline(StandardScaler(), Oracle(alpha=penalty * len(x))).fit(x.double().numpy(), y.numpy())


def pooled(predicted: Tensor, truth: Tensor) -> float:
    return r2_scores(predicted, truth)[1]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_predictions_are_those_of_scikit_learn_on_standardised_features(shape: tuple[int, int]) -> None:
    x, y = data(*shape)
    unseen = data(40, shape[1])[0]
    for fitted, penalty in zip(fit_ridges(x, y, [0.1, 1e-3, 3.0]), [0.1, 1e-3, 3.0], strict=True):
        assert fitted.penalty == penalty
        expected = oracle(x, y, penalty).predict(unseen.double().numpy())
        np.testing.assert_allclose(fitted.predict(unseen), expected, rtol=1e-8, atol=1e-8)


def test_primal_and_dual_agree() -> None:
    x, y = data(30, 20)
    (primal,) = fit_ridges(x, y, [0.01])
    (dual,) = fit_ridges(torch.cat([x, torch.full((30, 20), 0.1)], 1), y, [0.01])

    torch.testing.assert_close(dual.weight[:20], primal.weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(dual.bias, primal.bias, rtol=1e-9, atol=1e-9)
    assert torch.equal(dual.weight[20:], torch.zeros(20, 3, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_constant_column_has_no_weight(shape: tuple[int, int]) -> None:
    x, y = data(*shape)
    x[:, 3] = 0.1
    (fitted,) = fit_ridges(x, y, [1e-3])

    assert torch.equal(fitted.weight[3], torch.zeros(3, dtype=torch.float64))
    np.testing.assert_allclose(fitted.predict(x), oracle(x, y, 1e-3).predict(x.double().numpy()), rtol=1e-8, atol=1e-8)


def test_a_linear_function_without_noise_is_recovered() -> None:
    x = data(200, 8)[0].double()
    weight = torch.linspace(-1, 1, 16, dtype=torch.float64).view(8, 2)
    (fitted,) = fit_ridges(x, x @ weight + 4, [1e-13])

    torch.testing.assert_close(fitted.weight, weight, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(fitted.bias, torch.full((2,), 4.0, dtype=torch.float64), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_size_of_chunks_does_not_change_the_fit(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data(*shape)
    (whole,) = fit_ridges(x, y, [0.01])
    predicted = whole.predict(x)
    monkeypatch.setattr(ridge, "CHUNK_BYTES", 8 * 7 * min(shape))
    (chunked,) = fit_ridges(x, y, [0.01])

    torch.testing.assert_close(chunked.weight, whole.weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(chunked.predict(x), predicted, rtol=1e-9, atol=1e-9)


def test_memory_mapped_features_give_the_same_fit(tmp_path: Path) -> None:
    x, y = data(*SHAPES["primal"])
    x.numpy().tofile(tmp_path / "x")
    mapped = torch.from_file(str(tmp_path / "x"), shared=False, size=x.numel(), dtype=torch.float32).view_as(x)

    assert torch.equal(fit_ridges(mapped, y, [0.1])[0].weight, fit_ridges(x, y, [0.1])[0].weight)


def test_the_penalty_and_its_score_are_those_of_a_scikit_learn_search() -> None:
    x, y = data(90, 60)
    y = y + 4 * torch.randn(90, 3, generator=keyed_generator("test", "noise"), dtype=torch.float64)
    held = torch.arange(0, 90, 3)
    rest = torch.tensor([i for i in range(90) if i % 3])
    penalties = [1e-4, 1e-2, 1e-1, 1.0, 10.0, 1e3]
    scores = [
        r2_score(y[held], oracle(x[rest], y[rest], p).predict(x[held].double()), multioutput="variance_weighted")
        for p in penalties
    ]
    chosen, score = choose_ridge(x, y, penalties, held_out=held, score=pooled)

    assert chosen.penalty == penalties[int(np.argmax(scores))]
    assert penalties[0] < chosen.penalty < penalties[-1]
    assert score == pytest.approx(max(scores), abs=1e-9)
    torch.testing.assert_close(chosen.weight, fit_ridges(x, y, [chosen.penalty])[0].weight)


@pytest.mark.parametrize("count", [60, 20], ids=["primal", "dual"])
def test_a_penalty_below_numerical_precision_is_refused_and_not_chosen(count: int) -> None:
    x = torch.cat([data(count, 8)[0]] * 3, 1)
    x, y = torch.cat([x, x[: count // 2]]), torch.cat([x[:, :2], x[: count // 2, :2]])
    held = torch.arange(0, len(x), 5)

    with pytest.raises(AvtError, match=r"^Ridge penalties of 1e-40 are below numerical precision: give larger ones\.$"):
        fit_ridges(x, y, [1e-40, 1e-3])
    with pytest.raises(AvtError, match=r"^Ridge penalties of 1e-40, 1e-50 are below numerical precision: give larger ones\.$"):
        choose_ridge(x, y, [1e-40, 1e-50], held_out=held, score=pooled)
    assert choose_ridge(x, y, [1e-40, 1e-3], held_out=held, score=pooled)[0].penalty == 1e-3


def test_targets_far_from_zero_keep_their_digits() -> None:
    x, y = data(*SHAPES["primal"])
    (near,), (far,) = fit_ridges(x, y, [0.1]), fit_ridges(x, y + 1e6, [0.1])

    torch.testing.assert_close(far.weight, near.weight, rtol=1e-7, atol=1e-9)


def test_a_mask_holds_out_what_its_rows_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "CHUNK_BYTES", 800)
    x, y = data(*SHAPES["primal"])
    mask = torch.rand(len(x), generator=keyed_generator("test")) < 0.3
    by_mask = choose_ridge(x, y, [0.1, 10.0], held_out=mask, score=pooled)
    by_rows = choose_ridge(x, y, [0.1, 10.0], held_out=mask.nonzero()[:, 0].flip(0), score=pooled)

    assert by_mask[1] == by_rows[1]
    assert torch.equal(by_mask[0].weight, by_rows[0].weight)


def test_the_smallest_of_equally_good_penalties_is_chosen_nan_never() -> None:
    x, y = data(*SHAPES["primal"])
    scores = iter([float("nan"), 0.5, 0.5, 0.2])
    chosen, score = choose_ridge(
        x, y, [10.0, 5.0, 0.1, 1.0], held_out=torch.arange(9), score=lambda predicted, truth: next(scores)
    )

    assert (chosen.penalty, score) == (1.0, 0.5)


@pytest.mark.parametrize("held", [torch.zeros(90, dtype=torch.bool), torch.arange(90)], ids=["none", "all"])
def test_holding_out_no_row_or_every_row_is_refused(held: Tensor) -> None:
    x, y = data(*SHAPES["primal"])
    with pytest.raises(AvtError, match="of 90 rows are held out; at least one must be"):
        choose_ridge(x, y, [1.0], held_out=held, score=pooled)


@pytest.mark.parametrize("penalties", [[], [1.0, 0.0], [float("nan")]])
def test_missing_penalties_and_penalties_not_above_zero_are_refused(penalties: list[float]) -> None:
    with pytest.raises(AvtError, match="Penalties must be one or more numbers above 0, not"):
        fit_ridges(torch.eye(3), torch.eye(3), penalties)


def test_features_and_targets_of_different_length_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"x \(3, 3\) and y \(2, 2\) must be \(n, d\) and \(n, m\)"):
        fit_ridges(torch.eye(3), torch.eye(2), [1.0])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_features_that_are_not_finite_are_refused(shape: tuple[int, int]) -> None:
    x, y = data(*shape)
    x[5, 2] = torch.nan
    with pytest.raises(AvtError, match="contain infinities or NaN"):
        fit_ridges(x, y, [1.0])


def test_a_fit_of_rows_is_a_fit_of_the_selected_data() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=generator), torch.randn(40, 2, generator=generator, dtype=torch.float64)
    rows = torch.randperm(40, generator=generator)[:20]

    def score(predicted: torch.Tensor, truth: torch.Tensor) -> float:
        return -float((predicted - truth).square().sum())

    some, some_score = choose_ridge(x, y, [0.1, 1.0], held_out=rows[:4], rows=rows, score=score)
    alone, alone_score = choose_ridge(x[rows], y[rows], [0.1, 1.0], held_out=torch.arange(4), score=score)

    assert some.penalty == alone.penalty
    assert some_score == pytest.approx(alone_score)
    torch.testing.assert_close(some.weight, alone.weight)
