"""Linear heads in one product: what each would be alone."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli.core import linear_heads as module
from avtcli.core.heads import LinearHead
from avtcli.core.linear_heads import LinearHeads

FEATURES, HEADS, CLASSES = 2, 3, 5


def make_batches(shape: tuple[int, ...], *, last: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Four batches of (features, B, *shape) and their labels; maps with the channels last in memory, or first."""
    for count in (8, 8, 8, 3):
        x = torch.randn(FEATURES, count, *shape, dtype=torch.float64)
        yield x.movedim(2, -1).contiguous().movedim(-1, 2) if last else x, torch.randint(CLASSES, (count,))


def optimiser_of(rates: list[float], heads: list[list[nn.Parameter]]) -> torch.optim.Optimizer:
    groups = [{"params": mine, "lr": rate} for rate, mine in zip(rates, heads, strict=True)]
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=0.1)


def fresh(shape: tuple[int, ...]) -> list[list[LinearHead]]:
    torch.manual_seed(0)
    return [[LinearHead(shape, CLASSES).double() for _ in range(HEADS)] for _ in range(FEATURES)]


@pytest.mark.parametrize("shape", [(3, 2, 2), (3, 1, 1), (1, 2, 3), (3,)])
@pytest.mark.parametrize("last", [False, True])
def test_heads_learn_in_one_product_what_each_learns_alone(shape: tuple[int, ...], last: bool) -> None:
    apart = fresh(shape)
    together = LinearHeads(fresh(shape))
    rates = [0.3, 0.1, 0.03, 0.2, 0.02, 0.01]
    alone = [head for mine in apart for head in mine]
    ours, theirs = (
        optimiser_of(rates, found)
        for found in ([list(pair) for pair in together.parameters], [list(head.parameters()) for head in alone])
    )
    for x, labels in make_batches(shape, last=last):
        together.learn(x, labels)
        losses = [functional.cross_entropy(head(x[i]), labels) for i, mine in enumerate(apart) for head in mine]
        torch.stack(losses).sum().backward()
        for (weight, bias), head in zip(together.parameters, alone, strict=True):
            torch.testing.assert_close(weight.grad, head.linear.weight.grad.view(CLASSES, shape[0], -1).mT.flatten(1))
            torch.testing.assert_close(bias.grad, head.linear.bias.grad)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()

    for head in alone:
        head.eval()
    x = torch.randn(FEATURES, 4, *shape, dtype=torch.float64)
    torch.testing.assert_close(together(x), torch.stack([head(x[i]).T for i, mine in enumerate(apart) for head in mine]))
    for (_, bias), head in zip(together.parameters, alone, strict=True):
        torch.testing.assert_close(bias, head.linear.bias)


@pytest.mark.parametrize(("scale", "offset", "digits"), [(1.0, 300.0, 3), (0.0, 10.0, 2), (1.0, 0.5, 6)])
def test_folding_the_normalisation_into_weights_keeps_the_digits_that_it_should(
    scale: float, offset: float, digits: int
) -> None:
    """In float32, against float64: means of 300 deviations, channels that are constant, and such as a ReLU gives."""
    heads = fresh((3, 4, 4))
    for head in (head for mine in heads for head in mine):
        head.norm.momentum = 1.0  # the running statistics are the batch's own
    x = (torch.randn(FEATURES, 64, 3, 4, 4, dtype=torch.float64) * scale + offset).float()
    together = LinearHeads([[copy.deepcopy(head).float() for head in mine] for mine in heads])
    labels = torch.arange(64) % CLASSES
    together.learn(x, labels)
    for (weight, _), (i, head) in zip(
        together.parameters, ((i, head) for i, mine in enumerate(heads) for head in mine), strict=True
    ):
        functional.cross_entropy(head(x[i].double()), labels).backward()
        gradient = head.linear.weight.grad.view(CLASSES, 3, -1).mT.flatten(1)
        near = 10**-digits * max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(weight.grad.double(), gradient, rtol=0, atol=near)
        head.eval()
    expected = torch.stack([head(x[i].double()).T for i, mine in enumerate(heads) for head in mine])

    torch.testing.assert_close(together(x).double(), expected, rtol=0, atol=10**-digits * max(1.0, expected.abs().max().item()))


def test_statistics_are_the_same_by_what_each_device_computes_them_with(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, x = LinearHeads(fresh((3, 2, 2))), torch.randn(FEATURES, 8, 4, 3, dtype=torch.float64)
    mean, var = heads._statistics(x)
    running = heads.running_var.clone()
    other = LinearHeads(fresh((3, 2, 2)))
    monkeypatch.setattr(module, "FAST_STATISTICS", ())

    torch.testing.assert_close(other._statistics(x), (mean, var))
    torch.testing.assert_close(other.running_var, running)
