"""Linear heads in one product: what each would be alone."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli.probing.head_modules import LinearHead
from avtcli.probing.linear_heads import ChannelMoments, LinearHeads, Statistics

FEATURES, HEADS, CLASSES = 2, 3, 5

Shape = tuple[int, ...]


def make_batches(shapes: list[Shape], *, last: bool) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Four batches of stacks (B, features, *shape) and their labels; the channels last in memory, or first."""
    for count in (8, 8, 8, 3):
        stacks = [torch.randn(count, FEATURES, *shape, dtype=torch.float64) for shape in shapes]
        yield [x.movedim(2, -1).contiguous().movedim(-1, 2) if last else x for x in stacks], torch.randint(CLASSES, (count,))


def optimiser_of(rates: list[float], heads: list[list[nn.Parameter]]) -> torch.optim.Optimizer:
    groups = [{"params": mine, "lr": rate} for rate, mine in zip(rates, heads, strict=True)]
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=0.1)


def fresh(shapes: list[Shape]) -> list[list[list[LinearHead]]]:
    torch.manual_seed(0)
    return [[[LinearHead(shape, CLASSES).double() for _ in range(HEADS)] for _ in range(FEATURES)] for shape in shapes]


def statistics_of(stacks: list[Tensor]) -> Statistics:
    return ChannelMoments.of(stacks).statistics(torch.arange(len(stacks[0])))


def each(heads: list[list[list[LinearHead]]]) -> Iterator[tuple[int, int, LinearHead]]:
    """Every head with the numbers of its stack and its feature."""
    for i, stack in enumerate(heads):
        for j, mine in enumerate(stack):
            yield from ((i, j, head) for head in mine)


@pytest.mark.parametrize("shapes", [[(3, 2, 2)], [(3, 1, 1)], [(1, 2, 3)], [(3,)], [(3, 2, 2), (4,), (2, 3, 1)]])
@pytest.mark.parametrize("last", [False, True])
def test_heads_learn_in_one_product_what_each_learns_alone(shapes: list[Shape], last: bool) -> None:
    apart = list(each(fresh(shapes)))
    together = LinearHeads(fresh(shapes))
    rates = [0.3, 0.1, 0.03, 0.2, 0.02, 0.01] * len(shapes)
    ours, theirs = (
        optimiser_of(rates, found)
        for found in ([list(pair) for pair in together.parameters], [list(head.parameters()) for _, _, head in apart])
    )
    for stacks, labels in make_batches(shapes, last=last):
        together.fit_batch(stacks, statistics_of(stacks), labels)
        losses = [functional.cross_entropy(head(stacks[i][:, j]), labels) for i, j, head in apart]
        torch.stack(losses).sum().backward()
        for (weight, bias), (i, _, head) in zip(together.parameters, apart, strict=True):
            torch.testing.assert_close(weight.grad, head.linear.weight.grad.view(CLASSES, shapes[i][0], -1).mT.flatten(1))
            torch.testing.assert_close(bias.grad, head.linear.bias.grad)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()

    for _, _, head in apart:
        head.eval()
    stacks = [torch.randn(4, FEATURES, *shape, dtype=torch.float64) for shape in shapes]
    torch.testing.assert_close(together(stacks), torch.stack([head(stacks[i][:, j]).T for i, j, head in apart]))
    for (_, bias), (_, _, head) in zip(together.parameters, apart, strict=True):
        torch.testing.assert_close(bias, head.linear.bias)


@pytest.mark.parametrize(("scale", "offset", "digits"), [(1.0, 300.0, 3), (0.0, 10.0, 2), (1.0, 0.5, 6)])
def test_folding_the_normalisation_into_weights_keeps_the_digits_that_it_should(
    scale: float, offset: float, digits: int
) -> None:
    """In float32, against float64: means of 300 deviations, channels that are constant, and such as a ReLU gives."""
    heads = fresh([(3, 4, 4)])
    for _, _, head in each(heads):
        head.norm.momentum = 1.0  # the running statistics are the batch's own
    x = (torch.randn(64, FEATURES, 3, 4, 4, dtype=torch.float64) * scale + offset).float()
    together = LinearHeads([[[copy.deepcopy(head).float() for head in mine] for mine in heads[0]]])
    labels = torch.arange(64) % CLASSES
    together.fit_batch([x], statistics_of([x]), labels)
    for (weight, _), (_, j, head) in zip(together.parameters, each(heads), strict=True):
        functional.cross_entropy(head(x[:, j].double()), labels).backward()
        gradient = head.linear.weight.grad.view(CLASSES, 3, -1).mT.flatten(1)
        near = 10**-digits * max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(weight.grad.double(), gradient, rtol=0, atol=near)
        head.eval()
    expected = torch.stack([head(x[:, j].double()).T for _, j, head in each(heads)])

    torch.testing.assert_close(
        together([x]).double(), expected, rtol=0, atol=10**-digits * max(1.0, expected.abs().max().item())
    )


def test_statistics_of_any_images_follow_from_their_moments() -> None:
    maps, vectors, constant = torch.randn(9, 2, 3, 2, 4) + 100, torch.randn(9, 1, 6), torch.full((9, 1, 2, 3, 3), 0.1)
    moments = ChannelMoments.of([maps, vectors, constant])
    rows = torch.tensor([7, 2, 5])
    expected = [torch.var_mean(x[rows].double(), axes, correction=0) for x, axes in ((maps, (0, 3, 4)), (vectors, 0))]

    for seen in (moments, moments.seen_from(moments.origin + 2)):
        mean, var = seen.statistics(rows)
        torch.testing.assert_close(mean[:-2].double(), torch.cat([m.flatten() for _, m in expected]), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(var[:-2].double(), torch.cat([v.flatten() for v, _ in expected]), rtol=1e-4, atol=1e-5)
        assert (mean[-2:].tolist(), var[-2:].tolist()) == ([pytest.approx(0.1)] * 2, [pytest.approx(0, abs=1e-6)] * 2)
