"""Heads that are trained side by side on the same batches; linear ones on a feature as one matrix product."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, cross_entropy, hardshrink, linear

from avtcli.features.feature_reader import Feature, FeatureReader, Features
from avtcli.probing.head import TrainedHead
from avtcli.probing.heads._layers import LinearHead
from avtcli.seeding import seed_of


@dataclass(frozen=True)
class HeadSpec:
    """A head to train: its feature, and the peak of its cosine; none for the rates of the schedule."""

    feature: Feature
    peak: float | None


class Heads(ABC):
    """Heads on the features of a reader; their parameters are in the order of the specs."""

    parameters: list[list[nn.Parameter]]

    @abstractmethod
    def logits(self, features: Features, *, training: bool) -> list[Tensor]:
        """Logits of each head on a batch of features, (B, classes), in the order of the specs.

        In training, a batch is normalised by its own statistics, which update the running ones; else by those.
        """


class SeparateHeads(Heads):
    """Heads that are computed one after the other, each on its feature."""

    def __init__(self, heads: Sequence[nn.Module], own: Sequence[Feature]) -> None:
        self.heads, self.own = heads, own
        self.parameters = [list(head.parameters()) for head in heads]

    def logits(self, features: Features, *, training: bool) -> list[Tensor]:
        """Call each head; see `Heads`."""
        return [head.train(training)(features[feature]) for head, feature in zip(self.heads, self.own, strict=True)]


class JointLinearHeads(Heads):
    """`LinearHead`s: those on one feature normalise it once, and are one matrix product.

    The heads' weights are copied, with the channels last, as the features are in memory: (classes, cells * C).
    """

    def __init__(self, heads: Sequence[LinearHead], own: Sequence[Feature]) -> None:
        self.norms = {feature: head.norm for head, feature in zip(heads, own, strict=True)}
        self.members = {feature: [i for i, other in enumerate(own) if other == feature] for feature in self.norms}
        self.parameters = []
        for head in heads:
            weight = head.linear.weight.detach().view(len(head.linear.weight), head.norm.num_features, -1)
            weight = weight.mT.clone(memory_format=torch.contiguous_format).flatten(1)
            self.parameters.append([nn.Parameter(weight), nn.Parameter(head.linear.bias.detach().clone())])

    def logits(self, features: Features, *, training: bool) -> list[Tensor]:
        """Multiply normalised features and weights; see `Heads`."""
        logits = [torch.empty(0)] * len(self.parameters)
        for feature, members in self.members.items():
            norm, x = self.norms[feature], features[feature].movedim(1, -1)
            assert norm.momentum is not None
            cells = batch_norm(
                x.flatten(0, -2), norm.running_mean, norm.running_var, training=training, momentum=norm.momentum, eps=norm.eps
            )
            weight, bias = (torch.cat(own) for own in zip(*(self.parameters[i] for i in members), strict=True))
            joint = linear(cells.view(len(x), -1), weight, bias).view(len(x), len(members), -1)
            for i, own in zip(members, joint.unbind(1), strict=True):
                logits[i] = own
        return logits


def fit_batch(heads: Heads, features: Features, labels: Tensor) -> None:
    """Compute the gradients of each head's mean cross-entropy on a batch of two images at least; labels (B,) int64."""
    logits = torch.cat(heads.logits(features, training=True))
    logits.register_hook(flush_denormals)  # type: ignore[no-untyped-call]
    loss = cross_entropy(logits, labels.repeat(len(heads.parameters)), reduction="sum") / len(labels)
    loss.backward()  # type: ignore[no-untyped-call]


def flush_denormals(gradient: Tensor) -> Tensor:
    """Set to zero what is below float32's precision for any weight; a CPU multiplies denormal numbers very slowly."""
    return hardshrink(gradient, 1e-30)


def start_heads(
    specs: Sequence[HeadSpec], reader: FeatureReader, head: TrainedHead, *, classes: int, seed: int, tuned: bool
) -> Heads:
    """Build heads on the device of the features, all with the weights of one seed.

    Where the encoder is `tuned` too, linear layers start as in PyTorch: the release's weights are so large that the first steps
    would destroy the encoder's.
    """
    modules: list[nn.Module] = []
    for spec in specs:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(seed, "head"))
            module = head.build(spec.feature.layer, reader.shapes[spec.feature], classes)
            for layer in (m for m in module.modules() if tuned and isinstance(m, nn.Linear)):
                layer.reset_parameters()
        modules.append(module.to(reader.labels.device))
    own, linear_heads = [spec.feature for spec in specs], [module for module in modules if isinstance(module, LinearHead)]
    alone = tuned or len(linear_heads) < len(modules)
    return SeparateHeads(modules, own) if alone else JointLinearHeads(linear_heads, own)
