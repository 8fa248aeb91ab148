"""Calibration plot of a decoder's intervals."""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_calibration(calibration: dict[str, Any]) -> bytes | None:
    """Draw observed against nominal coverage as a PNG file, reproducibly; none if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # pyplot would keep global state
    except ImportError:
        return None
    figure = Figure(figsize=(6.4, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title("Calibration of the decoder")
    plot_calibration(axes, calibration)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def plot_calibration(axes: "Axes", calibration: dict[str, Any]) -> None:
    """Plot observed against nominal coverage, pooled and by parameter, with a legend next to the axes."""
    axes.set(xlabel="nominal coverage", ylabel="observed coverage", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="calibrated")
    levels = calibration["levels"]
    for name, shares in calibration["per_parameter"].items():
        axes.plot(levels, shares, linewidth=0.8, alpha=0.8, label=name)
    axes.plot(levels, calibration["pooled"], color="black", linewidth=2.5, label="pooled")
    axes.figure.legend(loc="outside right upper", fontsize="small")
