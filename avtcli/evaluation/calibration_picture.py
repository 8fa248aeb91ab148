"""The picture of a calibration: how often the truth lies inside the intervals that a decoder states."""

import io
from typing import Any


def draw_calibration(calibration: dict[str, Any]) -> bytes | None:
    """Draw observed against nominal coverage: pooled thick, each number thin, and the diagonal of a calibrated decoder.

    Args:
        calibration: levels, and the observed shares pooled and per_parameter.

    Returns:
        A PNG file, the same bytes for the same figures; none where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: nothing global, no window
    except ImportError:
        return None
    figure = Figure(figsize=(6.4, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set(xlabel="nominal coverage", ylabel="observed coverage", title="Calibration of the decoder")
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="calibrated")
    levels = calibration["levels"]
    for name, shares in calibration["per_parameter"].items():
        axes.plot(levels, shares, linewidth=0.8, alpha=0.8, label=name)
    axes.plot(levels, calibration["pooled"], color="black", linewidth=2.5, label="pooled")
    figure.legend(fontsize="small", loc="outside right upper")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
