"""Linear classifier, as in the ImageNet and Places205 evaluations."""

from avtcli.probing.head import Head, TrainedHead
from avtcli.probing.heads._layers import DESCRIPTION, LinearHead


def linear() -> Head:
    """BatchNorm and a linear layer on pooled maps."""
    return TrainedHead(DESCRIPTION, "max", lambda layer, shape, classes: LinearHead(shape, classes))
