"""Images that cannot be used: skipped and replaced in training, left out of measurements, counted, bounded, reported once.

An image that cannot be read, does not decode, is too large, or is smaller than the crop is replaced by the next one of the
run that can be used, with the sample's own crop and transformation. So the batches depend on the images alone, whatever the
number of workers and processes, and a resumed run sees the same ones.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from avtcli.contracts import Split
from avtcli.errors import AvtError
from avtcli.storage.run_data import BadImage

SHOWN: Final = 3  # reasons in a message
LISTED: Final = 20  # where all are known


def most_bad(used: int, max_fraction: float) -> int:
    """Return how many of the images that are read may be bad, never all: above 0, one of several may be in any case."""
    return min(max(1, int(max_fraction * used)), max(0, used - 1)) if max_fraction else 0


def option_for(bad: int, used: int) -> str | None:
    """Return the option of pretraining that lets a number of the images that are read be bad, in hundredths; none for all."""
    return next((f"`--max-bad-fraction {n / 100:g}`" for n in range(1, 101) if most_bad(used, n / 100) >= bad), None)


class BadImages:
    """The images of one split that a run cannot use.

    Args:
        split: the images.
        part: name of the split, train or test.
        used: the number of its images that the run reads.
        max_fraction: the share of these that may be bad, see `most_bad`.
        skip: whether bad images are skipped; otherwise the first new one is an error.
        known: those found before, of any split; they are not tried again.
        dataset: the data set that is trained on; none in a measurement, whose command has no option for bad images.

    Attributes:
        repaired: names of images that could not be used before, and can now.

    Raises:
        AvtError: if more are known than may be.
    """

    repaired: frozenset[str] = frozenset()

    def __init__(
        self,
        split: Split,
        part: str,
        *,
        used: int,
        max_fraction: float,
        skip: bool = True,
        known: Iterable[BadImage] = (),
        dataset: str | None = None,
    ) -> None:
        self.dataset = dataset
        self.split, self.part, self.used, self.max_fraction, self.skip = split, part, used, max_fraction, skip
        self.allowed = most_bad(used, max_fraction)
        reasons = {bad.name: bad.reason for bad in known if bad.split == part}
        self.reasons = {i: reasons[name] for i, name in split.find(reasons)} if reasons else {}
        self._new: list[int] = []
        self._check()

    def add(self, found: Mapping[int, str]) -> None:
        """Note images by index with the reason.

        Raises:
            AvtError: if there are more of them now than may be.
        """
        new = {index: reason for index, reason in found.items() if index not in self.reasons}
        self.reasons |= new
        self._new += new
        self._check()

    def usable(self, indices: Tensor) -> Tensor:
        """Return which images can be used, (n,) bool, by their indices, (n,) int64."""
        return torch.tensor([index not in self.reasons for index in indices.tolist()], dtype=torch.bool)

    def take_new(self) -> list[BadImage]:
        """Return the images that were noted since the last call."""
        new, self._new = self._new, []
        return [BadImage(self.part, self.split.name(index), self.reasons[index]) for index in new]

    def left_out(self) -> str:
        """Say how many images a measurement leaves out, and why the first ones."""
        reasons = list(self.reasons.values())
        first = "".join(f"\n  {reason}" for reason in reasons[:SHOWN])
        which = "is" if len(reasons) == 1 else "are"
        return f"{len(reasons)} of the {self.used} {self.part} images cannot be used and {which} left out:{first}"

    def _check(self) -> None:
        if problem := self.problem(list(self.reasons.values())):
            raise AvtError(problem)

    def problem(self, reasons: Sequence[str]) -> str:
        """Return a message if there are more bad images than may be, by the reason of each; else an empty text."""
        if len(reasons) <= self.allowed:
            return ""
        begins = f"{len(reasons)} of the {self.used} {self.part} images cannot be used, and at most {self.allowed} may be "
        if self.dataset is None:
            more = f"\n  and {len(reasons) - LISTED} more, see `avt data check`" if len(reasons) > LISTED else ""
            every = "\n  ".join(reasons[:LISTED])
            return (
                f"{begins}left out ({self.max_fraction:.0%}):\n  {every}{more}\nRepair them, or remove them from the data set."
            )
        first = "\n  ".join(reasons[:SHOWN])
        option, check = option_for(len(reasons), self.used), f"avt data check {shlex.quote(self.dataset)}"
        allow = f", or add {option}, which allows those found so far" if option else ""
        return (
            f"{begins}skipped (--max-bad-fraction {self.max_fraction:g}). The first:\n  {first}\nRepair them{allow}: `{check}` "
            "finds them all, `--on-bad-image raise` stops at the first one."
        )
