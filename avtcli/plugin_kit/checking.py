"""The promises that a plugin keeps, each as a function that tries one of them on what the plugin made.

A promise is called what it promises. It returns figures worth telling, or an empty string, and raises `UnkeptError` with
what it found and what it expected.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from avtcli.seeding import seed_of

T = TypeVar("T")


class UnkeptError(Exception):
    """A promise of the contract is not kept: what was found, and what was expected."""


@dataclass(frozen=True)
class Check:
    """One promise, tried.

    Attributes:
        promise: what is promised.
        problem: how it is broken; empty where it is kept.
        figures: worth telling of a promise that is kept; may be empty.
    """

    promise: str
    problem: str = ""
    figures: str = ""

    @property
    def ok(self) -> bool:
        """Whether the promise is kept."""
        return not self.problem


def expect(kept: bool, problem: str) -> None:
    """Say what is wrong.

    Raises:
        UnkeptError: if `kept` is false.
    """
    if not kept:
        raise UnkeptError(problem)


def described(tensor: Tensor) -> str:
    """The shape and type of a tensor, and whether it holds NaN or infinity, for messages."""
    odd = "" if bool(tensor.isfinite().all()) else " with NaN or infinity"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{odd}"


def broken(promise: str, error: Exception) -> Check:
    """A promise that ended in an exception: the battery's own says what is wrong, any other is told with its type."""
    if isinstance(error, UnkeptError):
        return Check(promise, problem=str(error))
    return Check(promise, problem=f"{type(error).__name__}: {error}".rstrip(": "))


def try_promise(promise: Callable[[T], str], subject: T) -> Check:
    """Try one promise; whatever the plugin raises meanwhile breaks it, and the caller's random state is left alone."""
    name = promise.__name__.replace("_", " ")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of("conformance", name))
        try:
            return Check(name, figures=promise(subject))
        except Exception as error:  # a stranger's code can fail in any way
            return broken(name, error)


def try_promises(promises: Sequence[Callable[[T], str]], subject: T) -> Iterator[Check]:
    """Try promises one after the other."""
    for promise in promises:
        yield try_promise(promise, subject)
