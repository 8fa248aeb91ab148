"""Learning rates as pure functions of the epoch."""

from collections.abc import Sequence
from math import cos, pi


def piecewise_rate(epoch: float, pieces: Sequence[tuple[float, float, float]]) -> float:
    """The rate of a schedule that is constant or linear in pieces.

    Args:
        epoch: counted from 0.
        pieces: (start, rate at the start, change an epoch), in order, the first start 0.
    """
    start, rate, slope = next(piece for piece in reversed(pieces) if piece[0] <= epoch)
    return rate + slope * (epoch - start)


def cosine_rate(progress: float, *, peak: float, warmup: float) -> float:
    """A linear rise to the peak over the first `warmup` of the run, then half a cosine down to 0.

    Args:
        progress: the share of the run that is done, in [0, 1].
        peak: the highest rate.
        warmup: the share of the run that rises, in [0, 1).
    """
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + cos(pi * (progress - warmup) / (1 - warmup)))
