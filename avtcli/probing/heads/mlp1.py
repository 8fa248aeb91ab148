"""Linear classifier under its name in the CIFAR-10 evaluation."""

from avtcli.probing.head import Head, TrainedHead
from avtcli.probing.heads._layers import DESCRIPTION, LinearHead


def mlp1() -> Head:
    """BatchNorm and a linear layer on complete maps."""
    return TrainedHead(DESCRIPTION, "none", lambda layer, shape, classes: LinearHead(shape, classes))
