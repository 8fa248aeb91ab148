"""Conformance checks: functions that test one requirement of a contract on what a plugin built.

The name of a check states the requirement. A check returns figures for the report, or an empty string, and raises
`CheckFailed` with what was found and what was expected.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from avtcli.seeding import seed_of

T = TypeVar("T")

Trial = tuple[Sequence[Callable[[Any], str]], Any]
"""The checks of a contract, and what they are run on."""


class CheckFailed(Exception):
    """A requirement of the contract is not met: what was found, and what was expected."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: the requirement.
        problem: why it is not met; empty where it is.
        figures: of a check that passed; may be empty.
    """

    name: str
    problem: str = ""
    figures: str = ""

    @property
    def ok(self) -> bool:
        """Whether the check passed."""
        return not self.problem


def expect(condition: bool, problem: str) -> None:
    """Fail the check unless a condition holds.

    Raises:
        CheckFailed: if `condition` is false.
    """
    if not condition:
        raise CheckFailed(problem)


def described(tensor: Tensor) -> str:
    """Describe a tensor for messages: shape, type, and whether it holds NaN or infinity."""
    odd = "" if bool(tensor.isfinite().all()) else " with NaN or infinity"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{odd}"


def failed_check(name: str, error: Exception) -> Check:
    """Turn an exception into a failed check; one that is not `CheckFailed` is reported with its type."""
    if isinstance(error, CheckFailed):
        return Check(name, problem=str(error))
    return Check(name, problem=f"{type(error).__name__}: {error}".rstrip(": "))


def run_check(check: Callable[[T], str], subject: T) -> Check:
    """Run one check; any exception fails it, and the caller's random state does not change."""
    name = check.__name__.replace("_", " ")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of("conformance", name))
        try:
            return Check(name, figures=check(subject))
        except Exception as error:  # a plugin's code can fail in any way
            return failed_check(name, error)


def run_checks(checks: Sequence[Callable[[T], str]], subject: T) -> Iterator[Check]:
    """Run checks one after the other."""
    for check in checks:
        yield run_check(check, subject)
