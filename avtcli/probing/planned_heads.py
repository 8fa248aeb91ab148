"""The heads that a probe trains side by side, as one thing that learns from features and gives logits."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli.config.probe_config import ProbeConfig
from avtcli.features.feature_reader import Batch, Feature, FeatureReader
from avtcli.probing.head_modules import LinearHead, build_head
from avtcli.probing.linear_heads import ChannelMoments, LinearHeads, flush_denormals
from avtcli.seeding import seed_of


@dataclass(frozen=True)
class HeadPlan:
    """A head to train: on which feature, and the peak of its cosine; none for the rates of the schedule."""

    feature: Feature
    peak: float | None


class Heads(ABC):
    """The heads of some plans, on the features of a reader.

    Attributes:
        parameters: of each head, in the order of the plans.
    """

    parameters: list[list[nn.Parameter]]

    @abstractmethod
    def fit_batch(self, batch: Batch, labels: Tensor) -> None:
        """Leave the parameters, which have no gradients, those of their heads' mean cross-entropies.

        The batch is normalised by its own statistics.

        Args:
            batch: of features.
            labels: theirs, (B,) int64.
        """

    @abstractmethod
    def __call__(self, batch: Batch) -> list[Tensor]:
        """Logits of each head, (classes, B), in the order of the plans, by the running statistics."""


class _Separate(Heads):
    """Heads that have nothing in common: `places` are the stack and the place in it of each one's feature."""

    def __init__(self, heads: Sequence[nn.Module], places: Sequence[tuple[int, int]]) -> None:
        self.heads, self.places = heads, places
        self.parameters = [list(head.parameters()) for head in heads]

    def fit_batch(self, batch: Batch, labels: Tensor) -> None:
        logits = torch.stack(self._logits(batch, training=True))
        logits.register_hook(flush_denormals)  # type: ignore[no-untyped-call]
        loss = functional.cross_entropy(logits, labels.expand(len(logits), -1), reduction="sum") / len(labels)
        loss.backward()  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> list[Tensor]:
        return self._logits(batch, training=False)

    def _logits(self, batch: Batch, *, training: bool) -> list[Tensor]:
        pairs = zip(self.heads, self.places, strict=True)
        return [head.train(training)(batch.stacks[stack][:, place]).T for head, (stack, place) in pairs]


class _Linear(Heads):
    """Linear heads, as many on each feature of a shape, all those of one shape in one product."""

    def __init__(self, heads: Sequence[LinearHead], places: Sequence[tuple[int, int]]) -> None:
        order = sorted(range(len(heads)), key=lambda i: places[i])
        by_stack = (list(members) for _, members in groupby(order, key=lambda i: places[i][0]))
        self.joined = LinearHeads(
            [[[heads[i] for i in mine] for _, mine in groupby(members, key=lambda i: places[i])] for members in by_stack]
        )
        self.where = sorted(range(len(order)), key=lambda i: order[i])  # of each plan among the joined heads
        self.parameters = [list(self.joined.parameters[place]) for place in self.where]

    def fit_batch(self, batch: Batch, labels: Tensor) -> None:
        found = batch.statistics or ChannelMoments.of(batch.stacks).statistics(torch.arange(len(labels), device=labels.device))
        self.joined.fit_batch(batch.stacks, found, labels)

    def __call__(self, batch: Batch) -> list[Tensor]:
        logits = self.joined(batch.stacks)
        return [logits[place] for place in self.where]


def start_heads(
    plans: Sequence[HeadPlan], reader: FeatureReader, config: ProbeConfig, *, classes: int, seed: int, tuned: bool
) -> Heads:
    """Make the heads of some plans, with the seed's weights, whatever else the process drew.

    Args:
        plans: in any order; linear ones as many on each feature of the reader.
        reader: of the features, on whose device the heads are made.
        config: their kind.
        classes: the number of classes.
        seed: of the weights, the same for all.
        tuned: whether the encoder is trained too. Then linear layers begin as PyTorch has them: through the release's large
            weights, the first steps would throw the layers below about.

    Raises:
        AvtError: for a head that does not fit its feature.
    """
    heads: list[nn.Module] = []
    for plan in plans:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(seed, "head"))
            conv_first = plan.feature.layer in config.conv_first
            head = build_head(config.head, reader.shapes[plan.feature], classes, conv_first=conv_first)
            for linear in (m for m in head.modules() if tuned and isinstance(m, nn.Linear)):
                linear.reset_parameters()
        heads.append(head.to(reader.labels.device))
    places = {f: (i, j) for i, stack in enumerate(reader.stacks) for j, f in enumerate(stack)}
    kind = _Linear if isinstance(heads[0], LinearHead) and not tuned else _Separate
    return kind(cast("list[LinearHead]", heads), [places[plan.feature] for plan in plans])
