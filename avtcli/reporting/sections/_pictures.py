"""Pictures inside of the page: drawings as SVG in its colours, images as data URIs."""

import base64
import html
import io
import re
from collections.abc import Callable
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

SERIES: Final = tuple(f"#5e{i:02d}{i:02d}" for i in range(8))
"""Colours of drawings that the page's style replaces: those of runs, `--s0` and on."""
CLASSES: Final = tuple(f"#c1{i:02d}{i:02d}" for i in range(10))
"""Likewise, of classes: `--c0` and on."""
MUTED: Final = "#808080"
INK: Final = "#000000"
DASHES: Final = ("-", "--", ":", "-.")
"""Lines of runs whose colour another run has."""

_VARIABLES: Final = (
    {colour: f"var(--s{i})" for i, colour in enumerate(SERIES)}
    | {colour: f"var(--c{i})" for i, colour in enumerate(CLASSES)}
    | {MUTED: "var(--muted)", INK: "currentColor", "#d0d0d0": "var(--rule)"}
)
_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "avt",
    "text.parse_math": False,  # names of runs and classes are text
    "font.size": 8,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d0d0d0",
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}
LARGEST: Final = 64
"""Pixels on a side up to which images are kept pixel by pixel; larger ones are reduced and compressed."""


def draw(plot: Callable[[Axes], None], *, label: str, size: tuple[float, float] = (3.5, 2.1), **style: Any) -> str:
    """Draw with matplotlib, as an SVG that takes font and colours from the page.

    Args:
        plot: what draws on the axes.
        label: description for readers who do not see it.
        size: width and height in inches.
        **style: of matplotlib.
    """
    buffer = io.StringIO()
    settings: Any = {**_STYLE, **style}  # matplotlib states the names of its settings as types
    with rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure.add_subplot())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("xlink:href", "href")
    head = re.search(r'viewBox="[^"]*"', svg)
    assert head is not None
    svg = f'<svg {head[0]} role="img" aria-label="{html.escape(label)}">{svg[svg.index(">") + 1 :]}'
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    return re.sub("|".join(_VARIABLES), lambda found: _VARIABLES[found[0]], svg)


def image_uri(image: Tensor, *, side: int = 112) -> str:
    """An image, (C, H, W) in [0, 1], as a data URI; a large one with a longer side of `side` px."""
    levels = image.mul(255).round().clamp(0, 255).byte()
    channels = len(levels)
    picture = Image.fromarray(levels[0].numpy() if channels == 1 else levels[:3].permute(1, 2, 0).contiguous().numpy())
    if max(picture.size) <= LARGEST:
        return _uri(picture, "png", optimize=True)
    picture.thumbnail((side, side))
    return _uri(picture, "jpeg", quality=85)


def _uri(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
