"""Conformance checks: functions that test one requirement of a contract on what a plugin built.

The name of a check states the requirement. A check returns figures for the report, or nothing, and raises `CheckFailed` with
what was found and what was expected.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avtcli.seeding import seed_of

CheckFunction = Callable[[Any], str | None]

Trial = tuple[Sequence[CheckFunction], Any]
"""The checks of a contract, and what they are run on."""


class CheckFailed(Exception):
    """A requirement of the contract is not met: what was found, and what was expected."""


@dataclass(frozen=True)
class Check:
    """The result of one check: its requirement, the problem (empty where it passed), and figures (may be empty)."""

    name: str
    problem: str = ""
    figures: str = ""

    @property
    def ok(self) -> bool:
        """Whether the check passed."""
        return not self.problem


def expect(condition: bool, problem: str) -> None:
    """Fail the check with a problem unless a condition holds."""
    if not condition:
        raise CheckFailed(problem)


def described(tensor: Tensor) -> str:
    """Describe a tensor for messages: shape, type, and whether it holds NaN or infinity."""
    odd = "" if bool(tensor.isfinite().all()) else " with NaN or infinity"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{odd}"


def expect_tensor(what: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    """Fail the check unless a tensor is finite and has a shape and, where given, a type."""
    fine = tensor.shape == shape and dtype in (None, tensor.dtype) and bool(tensor.isfinite().all())
    kind = "" if dtype is None else f" {dtype}".replace("torch.", "")
    expect(fine, f"{what} is {described(tensor)}, expected {shape}{kind}, finite")


def checks_of(subject: Any, names: Mapping[str, Any]) -> tuple[CheckFunction, ...]:
    """Return the checks among a module's names: its public functions that take a subject of this type, in their order."""
    functions = [value for name, value in names.items() if inspect.isfunction(value) and not name.startswith("_")]
    return tuple(function for function in functions if subject in function.__annotations__.values())


def failed_check(name: str, error: Exception) -> Check:
    """Turn an exception into a failed check; one that is not `CheckFailed` is reported with its type."""
    problem = str(error) if isinstance(error, CheckFailed) else f"{type(error).__name__}: {error}".rstrip(": ")
    return Check(name, problem)


def run_check(check: CheckFunction, subject: Any) -> Check:
    """Run one check; any exception fails it, and the caller's random state does not change."""
    name = check.__name__.replace("_", " ")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of("conformance", name))
        try:
            return Check(name, figures=check(subject) or "")
        except Exception as error:  # a plugin's code can fail in any way
            return failed_check(name, error)


def run_checks(checks: Sequence[CheckFunction], subject: Any) -> Iterator[Check]:
    """Run checks one after the other."""
    return (run_check(check, subject) for check in checks)
