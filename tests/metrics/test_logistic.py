"""Logistic regression against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Oracle
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from avtcli.errors import AvtError
from avtcli.metrics.logistic import fit_logistic
from avtcli.seeding import keyed_generator


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-3), (torch.float32, 3e-3)])
def test_probabilities_are_those_of_scikit_learn_on_standardised_features(dtype: torch.dtype, tolerance: float) -> None:
    generator = keyed_generator("logistic")
    x = torch.randn(120, 9, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 9) + torch.linspace(-5, 20, 9)
    x[:, 4] = 7.0
    centred = x - x.mean(0)
    scores = centred[:, 0] * 100 + centred[:, 8] / 100 + torch.randn(120, generator=generator)
    labels = torch.bucketize(scores, torch.tensor([-1.0, 1.0]))
    penalties = [1e-3, 1.0, 0.03]

    fitted = fit_logistic(x.to(dtype), labels, penalties, classes=3)

    assert [f.penalty for f in fitted] == [1.0, 0.03, 1e-3]
    for regression in fitted:
        oracle = make_pipeline(StandardScaler(), Oracle(C=1 / (regression.penalty * 120), max_iter=10_000, tol=1e-10))
        expected = oracle.fit(x.numpy(), labels.numpy()).predict_proba(x.numpy())
        np.testing.assert_allclose(regression.logits(x).softmax(1).double(), expected, atol=tolerance)
        assert not regression.weight[4].any()


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(AvtError, match="infinities or NaN"):
        fit_logistic(torch.tensor([[0.0], [torch.inf]]), torch.tensor([0, 1]), [1.0], classes=2)
