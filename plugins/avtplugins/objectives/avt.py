"""AVT: the likelihood of the transformation under the decoder, with the constants of the authors' release.

Qi, Zhang, Chen and Tian, "AVT: Unsupervised Learning of Transformation Equivariant Representations by Autoencoding
Variational Transformations", ICCV 2019 (arXiv 1903.10863), equation 8: maximise E log q(t | z~, z) over encoder and decoder.
"""

from functools import partial

from pydantic import NonNegativeFloat, PositiveFloat

from avtcli.contracts import Loss, Objective, Prediction, Target, TransformFamily
from avtcli.models.decoder import Decoder
from avtplugins.objectives._pairs import PairObjective, Views


def avt_loss(prediction: Prediction, target: Target, *, variance_floor: float) -> Loss:
    """-2 log q up to constants: sum over the parameters of log s2 + (mean - t)^2 / (s2 + variance_floor).

    Its parts are squared error per parameter, and mean log-variance.
    """
    log_var = prediction.log_var
    assert log_var is not None
    squared_error = (prediction.mean - target.values).square()
    per_sample = (log_var + squared_error / (log_var.exp() + variance_floor)).sum(1)
    return Loss(per_sample, {"mse": squared_error.mean(1), "log_var": log_var.mean(1)})


def avt(
    *,
    vector_dim: int,
    family: TransformFamily,
    noise_scale: NonNegativeFloat = 0.001,
    log_var_divisor: PositiveFloat = 1000.0,
    variance_floor: NonNegativeFloat = 1e-4,
    views: Views = 1,
) -> Objective:
    """AVT's objective with the release's constants; with them it stays close to a squared error.

    Args:
        vector_dim: given by the backbone.
        family: given by the transformations.
        noise_scale: factor before the encoder's standard deviation, z = mean + scale * exp(log_var / 2) * eps.
        log_var_divisor: divides the decoder's raw log-variance.
        variance_floor: added to the variance under the squared error.
        views: transformed views of each image, each decoded with the original; the loss is their mean.
    """
    decoder = Decoder(2 * vector_dim, family.dof, log_var_scale=1 / log_var_divisor)
    return PairObjective(decoder, partial(avt_loss, variance_floor=variance_floor), views=views, noise_scale=noise_scale)
