"""Linear heads in one matrix product, against each head alone."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from avtcli.probing.heads._layers import LinearHead
from avtcli.probing.joint_heads import JointLinearHeads, fit_batch, flush_denormals

FEATURES, HEADS, CLASSES = 2, 3, 5

Shape = tuple[int, ...]


def make_batches(shapes: list[Shape], *, last: bool) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Four batches of stacks (B, features, *shape) and their labels; the channels last in memory, or first."""
    for count in (8, 8, 8, 3):
        stacks = [torch.randn(count, FEATURES, *shape, dtype=torch.float64) for shape in shapes]
        yield [x.movedim(2, -1).contiguous().movedim(-1, 2) if last else x for x in stacks], torch.randint(CLASSES, (count,))


def fresh(shapes: list[Shape]) -> tuple[list[LinearHead], list[tuple[int, int]]]:
    """Heads in an order that mixes features, and their positions."""
    torch.manual_seed(0)
    positions = [(i, j) for _ in range(HEADS) for i in range(len(shapes)) for j in range(FEATURES)]
    return [LinearHead(shapes[i], CLASSES).double() for i, _ in positions], positions


@pytest.mark.parametrize("shapes", [[(3, 2, 2)], [(3, 1, 1)], [(1, 2, 3)], [(3,)], [(3, 2, 2), (4,), (2, 3, 1)]])
@pytest.mark.parametrize("last", [False, True])
def test_heads_learn_jointly_what_each_learns_alone(shapes: list[Shape], last: bool) -> None:
    alone, positions = fresh(shapes)
    joint = JointLinearHeads(copy.deepcopy(alone), positions)
    rates = [0.3, 0.1, 0.03, 0.2, 0.02, 0.01] * len(shapes)
    optimizers = [
        torch.optim.SGD(
            [{"params": own, "lr": rate} for rate, own in zip(rates, parameters, strict=True)],
            momentum=0.9,
            nesterov=True,
            weight_decay=0.1,
        )
        for parameters in (joint.parameters, [list(head.parameters()) for head in alone])
    ]
    for stacks, labels in make_batches(shapes, last=last):
        fit_batch(joint, stacks, labels)
        losses = [
            functional.cross_entropy(head(stacks[i][:, j]), labels) for head, (i, j) in zip(alone, positions, strict=True)
        ]
        torch.stack(losses).sum().backward()
        for (weight, bias), head, (i, _) in zip(joint.parameters, alone, positions, strict=True):
            torch.testing.assert_close(weight.grad, head.linear.weight.grad.view(CLASSES, shapes[i][0], -1).mT)
            torch.testing.assert_close(bias.grad, head.linear.bias.grad)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    stacks = [torch.randn(4, FEATURES, *shape, dtype=torch.float64) for shape in shapes]
    for logits, head, (i, j) in zip(joint.logits(stacks, training=False), alone, positions, strict=True):
        torch.testing.assert_close(logits, head.eval()(stacks[i][:, j]).T)


@pytest.mark.parametrize(("scale", "offset", "digits"), [(1.0, 300.0, 3), (0.0, 10.0, 2), (1.0, 0.5, 6)])
def test_normalising_weights_keeps_digits(scale: float, offset: float, digits: int) -> None:
    """In float32, against float64: means of 300 deviations, channels that are constant, and such as a ReLU gives."""
    heads, positions = fresh([(3, 4, 4)])
    for head in heads:
        head.norm.momentum = 1.0  # the running statistics are the batch's own
    x = (torch.randn(64, FEATURES, 3, 4, 4, dtype=torch.float64) * scale + offset).float()
    joint = JointLinearHeads([copy.deepcopy(head).float() for head in heads], positions)
    labels = torch.arange(64) % CLASSES
    fit_batch(joint, [x], labels)
    found = joint.logits([x], training=False)
    for (weight, _), logits, head, (_, j) in zip(joint.parameters, found, heads, positions, strict=True):
        functional.cross_entropy(head(x[:, j].double()), labels).backward()
        gradient = head.linear.weight.grad.view(CLASSES, 3, -1).mT
        expected = head.eval()(x[:, j].double()).T
        for ours, theirs in ((weight.grad, gradient), (logits, expected)):
            near = 10**-digits * max(1.0, theirs.abs().max().item())
            torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=near)


def test_gradients_below_any_weight_are_zero_and_others_stay() -> None:
    given = torch.tensor([1e-39, -1e-31, 1e-29, -3.0, float("nan")])
    found = flush_denormals(given)

    assert found[:4].tolist() == [0.0, 0.0, given[2].item(), -3.0]
    assert found[4].isnan()
