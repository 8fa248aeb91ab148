"""How near is near enough, in one table, and the comparisons that read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """|ours - golden| <= relative * scale + absolute, the scale being that of the comparison."""

    relative: float = 0.0
    absolute: float = 0.0


TABLE = {
    # compared with                                        scale
    "coefficients": Tolerance(1e-6, 1e-9),  # float64      |golden|, each number by itself
    "corners": Tolerance(1e-12),  #           float64      the largest |golden|
    "outputs": Tolerance(1e-4),  #            float32      the tensor's largest |value|
    "training": Tolerance(1e-8),  #           float64      the tensor's largest |value|
    "rates": Tolerance(1e-9),  #              float64      |golden|
}
WARP_EQUAL = 0.999  # the share of pixels that must be Pillow's to the grey level
WARP_LEVELS = 1  # how far any of them may be off


def assert_near(kind: str, what: str, ours: Tensor | float, golden: Any, scale: Tensor | float | None = None) -> None:
    """Compare numbers; the scale is the largest golden one where it is left out."""
    found, expected = torch.as_tensor(ours, dtype=torch.float64), torch.as_tensor(golden, dtype=torch.float64)
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, golden {tuple(expected.shape)}"
    limit = TABLE[kind].relative * (expected.abs().max() if scale is None else scale) + TABLE[kind].absolute
    beyond = ((found - expected).abs() - limit).flatten()
    at = int(beyond.argmax())
    pair = f"ours {found.flatten()[at]:.17g}, golden {expected.flatten()[at]:.17g}"
    assert beyond[at] <= 0, f"{what}: beyond the tolerance by {beyond[at]:.3g} at {at}; {pair}"


def assert_summary(kind: str, what: str, ours: Tensor, golden: Mapping[str, Any]) -> None:
    """Compare a tensor with its golden summary: shape where stated, mean, population std, sum of absolutes, first values."""
    if "shape" in golden:
        assert list(ours.shape) == golden["shape"], f"{what}: shape {list(ours.shape)}, golden {golden['shape']}"
    values = ours.detach().double().flatten()
    scale = values.abs().max()
    head: Sequence[float] = golden["head"]
    assert_near(kind, f"{what}, first values", values[: len(head)], head, scale)
    assert_near(kind, f"{what}, mean", values.mean(), golden["mean"], scale)
    assert_near(kind, f"{what}, std", values.std(correction=0), golden["std"], scale)
    assert_near(kind, f"{what}, mean of absolutes", values.abs().mean(), golden["abs_sum"] / len(values), scale)
