"""AET: the squared error of the transformation's parameters.

Zhang, Qi, Wang and Luo, "AET vs. AED: Unsupervised Representation Learning by Auto-Encoding Transformations rather than
Data", CVPR 2019 (arXiv 1901.04596); averaged over the parameters as in its authors' release.
"""

from avtcli.contracts import Loss, Objective, Prediction, Target, TransformFamily
from avtcli.models.decoder import Decoder
from avtplugins.objectives._pairs import PairObjective, Views


def aet_loss(prediction: Prediction, target: Target) -> Loss:
    """(1 / dof) sum over the parameters of (mean - t)^2."""
    return Loss((prediction.mean - target.values).square().mean(1))


def aet(*, vector_dim: int, family: TransformFamily, views: Views = 1) -> Objective:
    """AET's objective: the mean squared error of the normalised target, from a code without noise.

    Args:
        vector_dim: given by the backbone.
        family: given by the transformations.
        views: transformed views of each image, each decoded with the original; the loss is their mean.
    """
    return PairObjective(Decoder(2 * vector_dim, family.dof), aet_loss, views=views)
