"""Linear heads on one feature in one matrix product, against each head alone."""

import copy

import pytest
import torch
from torch.nn import functional

from avtcli.features.feature_reader import Feature, Features
from avtcli.probing.heads._layers import LinearHead
from avtcli.probing.joint_heads import JointLinearHeads, fit_batch, flush_denormals

HEADS, CLASSES = 3, 5

Shape = tuple[int, ...]


def feature(index: int) -> Feature:
    return Feature(f"layer{index}", "none", 4)


def make_features(shapes: list[Shape], count: int, *, last: bool = True) -> Features:
    """Features of a batch; the channels last in memory, or first."""
    values = [torch.randn(count, *shape, dtype=torch.float64) for shape in shapes]
    return {feature(i): x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x for i, x in enumerate(values)}


def fresh(shapes: list[Shape]) -> tuple[list[LinearHead], list[Feature]]:
    """Heads in an order that mixes features, and the feature of each."""
    torch.manual_seed(0)
    indices = [*range(len(shapes))] * HEADS
    return [LinearHead(shapes[i], CLASSES).double() for i in indices], [feature(i) for i in indices]


@pytest.mark.parametrize("shapes", [[(3, 2, 2)], [(3, 1, 1)], [(1, 2, 3)], [(3,)], [(3, 2, 2), (3, 2, 2), (4,), (2, 3, 1)]])
@pytest.mark.parametrize("last", [False, True])
def test_heads_learn_jointly_what_each_learns_alone(shapes: list[Shape], last: bool) -> None:
    alone, own = fresh(shapes)
    joint = JointLinearHeads(copy.deepcopy(alone), own)
    rates = [0.3 / 2**i for i in range(len(alone))]
    optimizers = [
        torch.optim.SGD(
            [{"params": weights, "lr": rate} for rate, weights in zip(rates, parameters, strict=True)],
            momentum=0.9,
            nesterov=True,
            weight_decay=0.1,
        )
        for parameters in (joint.parameters, [list(head.parameters()) for head in alone])
    ]
    for count in (8, 8, 8, 3):
        features, labels = make_features(shapes, count, last=last), torch.randint(CLASSES, (count,))
        fit_batch(joint, features, labels)
        losses = [functional.cross_entropy(head(features[f]), labels) for head, f in zip(alone, own, strict=True)]
        torch.stack(losses).sum().backward()
        for (weight, bias), head in zip(joint.parameters, alone, strict=True):
            assert head.linear.weight.grad is not None
            expected = head.linear.weight.grad.view(CLASSES, head.norm.num_features, -1).mT.flatten(1)
            torch.testing.assert_close(weight.grad, expected)
            torch.testing.assert_close(bias.grad, head.linear.bias.grad)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    features = make_features(shapes, 4)
    for logits, head, f in zip(joint.logits(features, training=False), alone, own, strict=True):
        torch.testing.assert_close(logits, head.eval()(features[f]))


def test_gradients_below_any_weight_are_zero_and_others_stay() -> None:
    given = torch.tensor([1e-39, -1e-31, 1e-29, -3.0, float("nan")])
    found = flush_denormals(given)

    assert found[:4].tolist() == [0.0, 0.0, given[2].item(), -3.0]
    assert found[4].isnan()
