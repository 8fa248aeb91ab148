"""`avtcli.export`."""

from pathlib import Path
from typing import TYPE_CHECKING

from avtcli.api._calling import calling, check_texts, path_of, run_of

if TYPE_CHECKING:
    from avtcli.exporting.export import ExportResult


def export(
    run: str | Path | None = None,
    *,
    format: str = "safetensors",
    out: str | Path | None = None,
    layer: str | None = None,
    progress: bool = False,
) -> "ExportResult":
    """Export the encoder's weights, load them back in a fresh process, and compare, as `avt export` does.

    Args:
        run: a run folder, a checkpoint or an exported file; "last" or none is the newest run under ./runs.
        format: safetensors, torch, timm, onnx, pt2, or that of a plugin.
        out: the file, or the folder of timm. Default: `encoder` with the format's ending in the run folder.
        layer: the layer that the loaded encoder returns. Default: the code.
        progress: show progress and notices on stderr, as the command line does.

    Returns:
        The file, the largest difference found, and the Python that loads it; what `avt export --json` prints.

    Raises:
        AvtError: if format or layer do not exist, the format cannot hold the encoder, or the file exists.
        RunFailedError: an AvtError, if what was written does not load, or gives other features; it is deleted then.
    """
    from avtcli.exporting.export import export as run_export
    from avtcli.models.weights import open_weights

    check_texts(format=format, layer=layer)
    with calling(progress) as on_event:
        source = open_weights(run_of(run), on_event=on_event)
        return run_export(source, file_format=format, out=path_of(out), layer=layer, on_event=on_event)
