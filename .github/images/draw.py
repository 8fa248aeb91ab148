"""Draw the README's picture of the method from a held-out pair of a run: `python .github/images/draw.py RUN [FILE.svg]`."""

import sys
from pathlib import Path

from torch import Tensor

from avtcli.events import ignore
from avtcli.reporting.held_out_pass import read_held_out
from avtcli.reporting.sections._pictures import image_uri

SIDE = 96
"""Size of an image in the picture, in SVG units."""
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; text-anchor: middle }
  .small { font-size: 11px; fill: #59636e }
  .box, .arrow { fill: none; stroke: #59636e; stroke-width: 1.3 }
  .head { fill: #59636e }
  .true { fill: none; stroke: #1a7f37; stroke-width: 2 }
  .decoded { fill: none; stroke: #d1570a; stroke-width: 2; stroke-dasharray: 5 3 }
  .key-true { fill: #1a7f37 } .key-decoded { fill: #d1570a }
  image { image-rendering: pixelated }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 }
    .box, .arrow { stroke: #9198a1 } .head { fill: #9198a1 }
    .true { stroke: #3fb950 } .decoded { stroke: #f0883e } .key-true { fill: #3fb950 } .key-decoded { fill: #f0883e }
  }"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Centred text."""
    return f'<text x="{x}" y="{y}" class="{kind}">{words}</text>'


def image(x: float, y: float, pixels: Tensor) -> str:
    """An image, (C, H, W) in [0, 1]."""
    return f'<image x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" href="{image_uri(pixels)}"/>'


def box(x: float, y: float, words: str, note: str) -> str:
    """A part of the network, its centre left at (x, y)."""
    frame = f'<rect x="{x}" y="{y - 27}" width="104" height="54" rx="7" class="box"/>'
    return frame + text(x + 52, y - 3, words) + text(x + 52, y + 14, note, "small")


def arrow(*points: tuple[float, float]) -> str:
    """A line through the points with a head at its end."""
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" class="arrow" marker-end="url(#head)"/>'


def corners(x: float, y: float, points: Tensor, side: int, kind: str) -> str:
    """The outline of a transformed image: corners (4, 2) in pixels of the original, at (x, y); a dot marks its top left."""
    path = " ".join(f"{x + SIDE * a / side:.1f},{y + SIDE * b / side:.1f}" for a, b in points.tolist())
    first = path.split()[0].split(",")
    return f'<polygon points="{path}" class="{kind}"/><circle cx="{first[0]}" cy="{first[1]}" r="3.5" class="key-{kind}"/>'


def draw(run: Path) -> str:
    """The picture of the pair whose corner error is the median of a report's pairs."""
    pairs = read_held_out(run, on_event=ignore).pairs
    if isinstance(pairs, str):
        sys.exit(f"{run} has no decoded pairs: {pairs}.")
    n = int(pairs.errors.argsort()[len(pairs.errors) // 2])
    side = pairs.original.shape[-1]
    parts = [
        image(20, 40, pairs.original[n]),
        text(68, 30, "image x"),
        image(20, 196, pairs.transformed[n]),
        text(68, 310, "transformed image t(x)"),
        arrow((68, 138), (68, 192)),
        text(88, 169, "t"),
        *(arrow((120, y), (170, y)) + box(174, y, "encoder", "mean, noise") for y in (88, 244)),
        '<line x1="226" y1="118" x2="226" y2="214" class="arrow" stroke-dasharray="3 4"/>',
        text(278, 170, "shared weights", "small"),
        arrow((278, 88), (396, 88), (396, 135)),
        text(336, 80, "code z̃"),
        arrow((278, 244), (396, 244), (396, 197)),
        text(336, 262, "code z"),
        box(344, 166, "decoder", "q(t | z, z̃)"),
        arrow((448, 166), (566, 166)),
        text(506, 156, "mean and"),
        text(506, 186, "variance of t"),
        image(612, 118, pairs.original[n]),
        corners(612, 118, pairs.true[n], side, "true"),
        corners(612, 118, pairs.predicted[n], side, "decoded"),
        text(660, 30, "where the corners of t(x) lie in x"),
        text(626, 50, "true", "key-true"),
        text(686, 50, "decoded", "key-decoded"),
        text(660, 310, f"corner error {pairs.errors[n]:.1f} px of {side}"),
    ]
    label = "One encoder encodes an image and its transformation; a decoder predicts the transformation from both codes."
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" class="head"/></marker>'
    )
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-20 8 800 318" role="img" aria-label="{label}">'
    return "\n".join([start, f"<style>{STYLE}\n</style><defs>{head}</defs>", *parts, "</svg>\n"])


if __name__ == "__main__":
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_name("method.svg")
    target.write_text(draw(Path(sys.argv[1])), encoding="utf-8")
