"""Three fully connected layers, as in the CIFAR-10 evaluation."""

from avtcli.probing.head import Head, TrainedHead
from avtcli.probing.heads._layers import build_mlp


def mlp3() -> Head:
    """Two hidden layers of 200 units and a linear layer."""
    description = "three FC layers: twice 200 units with BatchNorm and ReLU, linear"
    return TrainedHead(description, "none", lambda layer, shape, classes: build_mlp(shape, classes, hidden=2))
