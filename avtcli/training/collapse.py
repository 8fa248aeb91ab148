"""What a run's evaluations say of collapse: a code that no longer tells images apart, a decoder that has learned nothing.

A false alarm costs a run, silence an hour, so the thresholds lie far from what was seen of healthy runs on the embedded images
(NIN, a ResNet; SGD and AdamW), and within what was seen of AdamW at 10, whose code lost all but 0.3 % of its code std and had an
effective rank of 1.00.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from avtcli.config.pretrain_config import PretrainConfig

Point = dict[str, Any]
"""A line of metrics.jsonl with the figures of an evaluation: `step`, `epoch` (how many are done) and `eval`."""

CODE_STD_LEFT: Final = 0.01
"""Of the first evaluation's code std: a collapsed code has less; healthy ones kept half of it or gained."""
CODE_STD_FLOOR: Final = 1e-5
"""Of a code that was flat from the start: about what rounding in float32 leaves."""
RANK_LEFT: Final = 0.05
"""Of what the first effective rank had above 1, which is its least value: random weights have about 2, healthy ones gain."""
RANK_FLOOR: Final = 2.0
"""No larger rank is a collapse, however large the first one was: published weights may have a hundred."""
AS_CONSTANT: Final = 0.98
"""Of the constant predictor's MACE. Both are measured under the same transformations, so that no luck in their draw counts."""
SETTLED_SHARE: Final = 0.1
SETTLED_STEPS: Final = 300
SETTLED_PAIRS: Final = 100_000
"""A decoder is judged after this share of the run, or its warm-up where that is longer, so many steps and so many pairs of
images. Until then it may know nothing: NIN and a ResNet left the constant's error behind after 2 000 to 10 000 pairs and up to
320 steps, a small ViT had not after 16 000 pairs.
"""


def new_signs(points: Sequence[Point], *, config: PretrainConfig, steps_per_epoch: int) -> list[str]:
    """What the last evaluation shows for the first time, each sign with its figures and what to try.

    Args:
        points: all evaluations of the run, in their order.
        config: the run's settings.
        steps_per_epoch: of the run.
    """
    settled = _settled_step(config, config.total_epochs * steps_per_epoch)
    named = {kind for end in range(1, len(points)) for kind in _signs(points[:end], settled)}
    advice = {
        "code": f"a lower rate, as `--lr {config.schedule.peak / 10:.1g}`",
        "decoder": f"another rate (`--lr`, now {config.schedule.peak:g}), more --epochs",
    }
    return [
        f"{sign} Try {advice[kind]}, a smaller transformation (`-o transform.KEY=VALUE`) or another --objective."
        for kind, sign in _signs(points, settled).items()
        if kind not in named
    ]


def _settled_step(config: PretrainConfig, total_steps: int) -> float:
    """The step from which on the decoder is judged; a schedule in pieces has no warm-up."""
    share = max(SETTLED_SHARE, 0 if config.schedule.pieces else config.schedule.warmup)
    return max(share * total_steps, SETTLED_STEPS, SETTLED_PAIRS / config.batch_size)


def _signs(points: Sequence[Point], settled: float) -> dict[str, str]:
    """What the last evaluation shows, by kind."""
    if len(points) < 2:
        return {}
    first, before, now = points[0]["eval"], points[-2]["eval"], points[-1]["eval"]
    signs, epoch = {}, points[-1]["epoch"]
    if _is_flat(first, now):
        signs["code"] = (
            f"Collapse at epoch {epoch}: all images have nearly one code, code std {in_words(now['code_std'], '.2g')} "
            f"(at first {in_words(first['code_std'], '.2g')}), RankMe {in_words(now['rankme'], '.1f')} "
            f"(at first {in_words(first['rankme'], '.1f')})."
        )
    if points[-2]["step"] >= settled and _knows_nothing(before) and _knows_nothing(now):
        signs["decoder"] = (
            f"Nothing learned by epoch {epoch}: the decoder is no better than one that always says the same, MACE "
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


def in_words(value: float | None, form: str) -> str:
    """A figure that every network has, unless it is not finite."""
    return "not finite" if value is None else format(value, form)
