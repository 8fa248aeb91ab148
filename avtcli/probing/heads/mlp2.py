"""Two fully connected layers, as in the CIFAR-10 evaluation."""

from avtcli.probing.head import Head, TrainedHead
from avtcli.probing.heads._layers import build_mlp


def mlp2() -> Head:
    """One hidden layer of 200 units and a linear layer."""
    description = "two FC layers: 200 units with BatchNorm and ReLU, linear"
    return TrainedHead(description, "none", lambda layer, shape, classes: build_mlp(shape, classes, hidden=1))
