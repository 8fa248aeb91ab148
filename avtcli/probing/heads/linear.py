"""Linear classifier, as in the ImageNet and Places205 evaluations."""

from avtcli.probing.head import Head, TrainedHead
from avtcli.probing.heads._layers import LinearHead


def linear() -> Head:
    """BatchNorm and a linear layer on pooled maps."""
    return TrainedHead("BatchNorm without affine, linear", "max", lambda layer, shape, classes: LinearHead(shape, classes))
