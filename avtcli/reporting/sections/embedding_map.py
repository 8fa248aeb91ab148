"""Maps of the codes in two dimensions."""

import importlib.util
from collections.abc import Sequence
from functools import partial

import torch
from matplotlib.axes import Axes
from torch import Tensor

from avtcli.errors import AvtError
from avtcli.reporting.collected_run import CollectedRun
from avtcli.reporting.sections._blocks import Block, Charts, Section, side_by_side
from avtcli.reporting.sections._pictures import CLASSES, MUTED, draw

PERPLEXITY = 30
ALIKE = 1e-6
"""Standard deviation of codes, as a share of the largest magnitude, up to which they differ by rounding alone."""
LEAD = "One point for each held-out image, by its code. Colours are classes, which the network never saw."


def embedding_map(runs: Sequence[CollectedRun]) -> Section:
    """Principal components of the codes, and t-SNE where scikit-learn is installed."""
    return Section(80, "Map", LEAD, side_by_side(runs, _maps))


def _maps(run: CollectedRun) -> list[Block]:
    held_out = run.images
    spread = held_out.codes.std(0, correction=0).max()
    if not spread > ALIKE * held_out.codes.abs().max():  # NaN too; t-SNE divides by the spread, and crashes
        raise AvtError("the codes of the held-out images are all alike, so that there is nothing to map")
    labels = torch.full((len(held_out.codes),), -1) if held_out.labels is None else held_out.labels
    shown = labels.bincount(minlength=1).argsort(descending=True)[: len(CLASSES)] if (labels >= 0).all() else labels[:0]
    shown = shown.sort().values
    points, shares = _principal_components(held_out.codes)
    note = f"{held_out.what}; {shares.sum():.0%} of the variance"
    charts = [_chart("Principal components", points, labels, shown, note)]
    mapped = _neighbour_map(held_out.codes)
    if mapped is not None:
        charts.append(_chart("t-SNE", mapped, labels, shown, "neighbourhoods; distances between groups say little"))
    return [Charts(charts, [(f"c{i}", held_out.classes[label]) for i, label in enumerate(shown.tolist())])]


def _chart(title: str, points: Tensor, labels: Tensor, shown: Tensor, note: str) -> tuple[str, str, str]:
    return title, draw(partial(_plot, points=points, labels=labels, shown=shown), label=title, size=(3.5, 3.1)), note


def _plot(axes: Axes, *, points: Tensor, labels: Tensor, shown: Tensor) -> None:
    others = ~torch.isin(labels, shown)
    axes.scatter(points[others, 0], points[others, 1], s=7, color=MUTED, linewidths=0)
    for colour, label in zip(CLASSES, shown.tolist(), strict=False):
        own = labels == label
        axes.scatter(points[own, 0], points[own, 1], s=9, color=colour, linewidths=0)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _principal_components(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates on the first two components, (n, 2), and their shares of the variance."""
    centred = codes.double() - codes.double().mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    shares = s.square() / s.square().sum().clamp(min=torch.finfo(s.dtype).tiny)
    return u[:, :2] * s[:2], shares[:2]


def _neighbour_map(codes: Tensor) -> Tensor | None:
    if importlib.util.find_spec("sklearn") is None or len(codes) <= 3 * PERPLEXITY:
        return None
    from sklearn.manifold import TSNE

    return torch.from_numpy(TSNE(perplexity=PERPLEXITY, init="pca", random_state=0).fit_transform(codes.numpy()))
