"""`avt export`."""

from pathlib import Path
from typing import Annotated

from avtcli.cli.completion import complete_layers, complete_plugin
from avtcli.cli.console import reporting, say, say_facts, say_json
from avtcli.cli.options import Json, Run, option

_FORMAT = "torch, timm, onnx, pt2; see `avt plugins list`."
_LAYER = "The layer that the loaded encoder returns. Default: the code."


def export(
    run: Run = None,
    file_format: Annotated[
        str, option(_FORMAT, "NAME", flag="--format", autocompletion=complete_plugin("exporter"))
    ] = "safetensors",
    out: Annotated[Path | None, option("The file. Default: `encoder` with the format's ending in the run.", "PATH")] = None,
    layer: Annotated[str | None, option(_LAYER, "NAME", autocompletion=complete_layers(several=False))] = None,
    as_json: Json = False,
) -> None:
    """Export the encoder's weights, load them back in a fresh process, and compare.

    A model card, README.md, is written with them; a README.md that is there is kept.

    Example: `avt export --format safetensors`
    """
    from avtcli.exporting.export import export as run_export
    from avtcli.models.weights import open_weights

    with reporting() as on_event:
        source = open_weights(run, on_event=on_event)
        result = run_export(source, file_format=file_format, out=out, layer=layer, on_event=on_event)
    if as_json:
        say_json(result)
        return
    difference = f"{result.max_abs_diff:g}  (loaded back in a fresh process)"
    say_facts({"file": result.file, "card": result.card, "step": result.step, "max_abs_diff": difference})
    say("load it with", *(f"  {line}" for line in result.load_with.split("; ")))
