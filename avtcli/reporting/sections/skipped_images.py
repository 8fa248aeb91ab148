"""Images that a run could not use."""

from collections import Counter
from collections.abc import Sequence

from avtcli.reporting.collected_run import CollectedRun
from avtcli.reporting.sections._blocks import MOST_ROWS, Block, Fold, Section, Table, short_text, side_by_side
from avtcli.storage.run_data import read_bad_images


def skipped_images(runs: Sequence[CollectedRun]) -> Section | None:
    """The content of bad_images.csv; no section where every image could be used."""
    blocks = side_by_side(runs, _skipped)
    lead = "Images that could not be read; training took others in their place."
    return Section(100, "Skipped images", lead, blocks) if blocks else None


def _skipped(run: CollectedRun) -> list[Block]:
    bad = read_bad_images(run.summary.run)
    if not bad:
        return []
    counts = Counter(image.split for image in bad)
    title = ", ".join(f"{count} of the {split} split" for split, count in counts.items())
    rows = [[image.name, short_text(image.reason)] for image in bad[:MOST_ROWS]]
    shown = f"{title}, the first {MOST_ROWS}" if len(bad) > MOST_ROWS else title
    return [Fold(shown, [Table(["image", "reason"], rows, figures=False)])]
