"""Draw the README's curves from the runs of its table, named OBJECTIVE-SEED: `python .github/images/objectives.py RUNS`."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from matplotlib import pyplot as plt

FIGURES = {"knn_top1": "k-NN of the code, top-1 %", "mace_px": "corner error, px"}
INK = "#7d8590"
"""A grey that is read on light and on dark pages."""


def evaluations(runs: Path) -> dict[str, dict[str, dict[int, list[float]]]]:
    """The figures of the runs by figure, objective and epoch, one for each seed."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {name: {} for name in FIGURES}
    for log in sorted(runs.glob("*/metrics.jsonl")):
        objective = log.parent.name.rpartition("-")[0]
        for line in map(json.loads, log.read_text().splitlines()):
            for name in FIGURES:
                value = line.get("eval", {}).get(name)
                if value is not None:
                    by_epoch = found[name].setdefault(objective, defaultdict(list))
                    by_epoch[line["epoch"]].append(value)
    return found


def draw(runs: Path, target: Path) -> None:
    """Draw the mean over seeds and the range that the seeds span."""
    style = {key: INK for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")}
    style |= {"svg.fonttype": "none", "svg.hashsalt": "avt", "font.family": "sans-serif"}
    found = evaluations(runs)
    colours = {name: f"C{i}" for i, name in enumerate(sorted({name for each in found.values() for name in each}))}
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
        for panel, (name, title) in zip(axes, FIGURES.items(), strict=True):
            for objective, by_epoch in found[name].items():
                epochs, values = list(by_epoch), list(by_epoch.values())
                panel.plot(
                    epochs, [fmean(v) for v in values], marker="o", markersize=3, color=colours[objective], label=objective
                )
                panel.fill_between(
                    epochs, [min(v) for v in values], [max(v) for v in values], color=colours[objective], alpha=0.2, linewidth=0
                )
            panel.set_title(title, loc="left", fontsize=10)
            panel.set_xlabel("epoch")
            panel.spines[["top", "right"]].set_visible(False)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
        figure.savefig(target, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(__file__).with_name("objectives.svg"))
