"""Signs of a collapse in a run's evaluations: one code for all images, or a decoder no better than a constant.

A false alarm costs a run, silence an hour: the thresholds lie far from the figures of healthy runs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from avtcli.config.pretrain_config import PretrainConfig

Point = dict[str, Any]
"""A line of metrics.jsonl with the figures of an evaluation: `step`, `epoch` (number of epochs done) and `eval`."""

CODE_STD_LEFT: Final = 0.01  # share of the first evaluation's code std below which the code has collapsed
CODE_STD_FLOOR: Final = 1e-5  # code std of a code that was flat from the start: about the rounding of float32
RANK_LEFT: Final = 0.05  # share of the first effective rank above 1 below which the code has collapsed
RANK_FLOOR: Final = 2.0  # no larger rank is a collapse, however large the first one was
AS_CONSTANT: Final = 0.98  # share of the constant predictor's corner error, under the same transformations
SETTLED_SHARE, SETTLED_STEPS, SETTLED_PAIRS = 0.1, 300, 100_000
"""A decoder is judged after this share of the run (or its longer warm-up), and this number of steps and of pairs."""


def new_signs(points: Sequence[Point], *, config: PretrainConfig, steps_per_epoch: int) -> list[str]:
    """Return the signs that the last of a run's evaluations shows for the first time, each with its figures and advice."""
    settled = _settled_step(config, config.total_epochs * steps_per_epoch)
    named = {kind for end in range(1, len(points)) for kind in _signs(points[:end], settled)}
    advice = {
        "code": f"a lower rate, as `--lr {config.schedule.peak / 10:.1g}`",
        "decoder": f"another rate (`--lr`, now {config.schedule.peak:g}), more --epochs, another transform.target",
    }
    return [
        f"{sign} Try {advice[kind]}, a smaller transformation (`-o transform.KEY=VALUE`) or another --objective."
        for kind, sign in _signs(points, settled).items()
        if kind not in named
    ]


def _settled_step(config: PretrainConfig, total_steps: int) -> float:
    """Return the step from which on the decoder is judged; a schedule in pieces has no warm-up."""
    share = max(SETTLED_SHARE, 0 if config.schedule.pieces else config.schedule.warmup)
    return max(share * total_steps, SETTLED_STEPS, SETTLED_PAIRS / config.batch_size)


def _signs(points: Sequence[Point], settled: float) -> dict[str, str]:
    if len(points) < 2:
        return {}
    first, before, now = points[0]["eval"], points[-2]["eval"], points[-1]["eval"]
    signs, epoch = {}, points[-1]["epoch"]
    if _is_flat(first, now):
        signs["code"] = (
            f"Collapse at epoch {epoch}: all images have nearly one code, code std {format_figure(now['code_std'], '.2g')} "
            f"(at first {format_figure(first['code_std'], '.2g')}), RankMe {format_figure(now['rankme'], '.1f')} "
            f"(at first {format_figure(first['rankme'], '.1f')})."
        )
    if points[-2]["step"] >= settled and _knows_nothing(before) and _knows_nothing(now):
        signs["decoder"] = (
            f"Nothing learned by epoch {epoch}: the decoder is no better than a constant prediction, MACE "
            f"{before['mace_px']:.1f} px at epoch {points[-2]['epoch']} and {now['mace_px']:.1f} px now, the constant's "
            f"{now['constant_mace_px']:.1f} px."
        )
    return signs


def _is_flat(first: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if now["code_std"] is None or now["rankme"] is None:  # not finite
        return True
    if now["code_std"] < max(CODE_STD_FLOOR, CODE_STD_LEFT * (first["code_std"] or 0)):
        return True
    return bool(now["rankme"] < min(RANK_FLOOR, 1 + RANK_LEFT * ((first["rankme"] or 1) - 1)))


def _knows_nothing(figures: Mapping[str, Any]) -> bool:
    mace, constant = figures["mace_px"], figures["constant_mace_px"]
    return mace is not None and constant is not None and bool(mace >= AS_CONSTANT * constant)


def format_figure(value: float | None, form: str) -> str:
    """Format a figure that is none where it is not finite."""
    return "not finite" if value is None else format(value, form)
