"""The variational bound of AVT as the paper states it: the exact Gaussian likelihood, free in its variance, and a noisy code.

Qi, Zhang, Chen and Tian, "AVT", ICCV 2019 (arXiv 1903.10863), equation 8, without the constants of the authors' release.
"""

from math import log, pi

from pydantic import NonNegativeFloat

from avtcli.contracts import Loss, Objective, Prediction, Target, TransformFamily
from avtcli.models.decoder import Decoder
from avtplugins.objectives._pairs import PairObjective, Views


def gaussian_loss(prediction: Prediction, target: Target) -> Loss:
    """-log N(t; mean, exp(log_var)) in nats: sum of [log(2 pi) + log_var + (t - mean)^2 exp(-log_var)] / 2 over the parameters.

    With it, I(t; z | z~) >= H(t) - loss: the loss is in the units of the bound. Its parts are squared error per parameter, and
    mean log-variance.
    """
    log_var = prediction.log_var
    assert log_var is not None
    squared_error = (prediction.mean - target.values).square()
    nats = (log(2 * pi) + log_var + squared_error * (-log_var).exp()) / 2
    return Loss(nats.sum(1), {"mse": squared_error.mean(1), "log_var": log_var.mean(1)})


def gaussian(*, vector_dim: int, family: TransformFamily, noise_scale: NonNegativeFloat = 1.0, views: Views = 1) -> Objective:
    """The paper's bound: the exact Gaussian log-likelihood of the normalised target, in nats, with a free variance.

    A component that is learnt early takes over the gradient, which is divided by its variance: with `--transform projective`
    give `-o transform.target=coefficients`, where all components state the turn, or it may never be learnt.

    Args:
        vector_dim: given by the backbone.
        family: given by the transformations.
        noise_scale: factor before the encoder's standard deviation, z = mean + scale * exp(log_var / 2) * eps.
        views: transformed views of each image, each decoded with the original; the loss is their mean.
    """
    decoder = Decoder(2 * vector_dim, family.dof, log_var_scale=1.0)
    return PairObjective(decoder, gaussian_loss, views=views, noise_scale=noise_scale)
