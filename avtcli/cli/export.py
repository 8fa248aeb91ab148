"""`avt export`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from avtcli.cli.console import reporting, say, say_json
from avtcli.cli.options import Json, Run


def export(
    run: Run = None,
    file_format: Annotated[Literal["safetensors"], typer.Option("--format", help="Of the file.")] = "safetensors",
    out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The file. Left out: encoder.safetensors in the run folder.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(metavar="NAME", help="The layer that the loaded encoder returns. Left out: the code.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the encoder's weights to one file, load it back in a fresh process, and compare.

    Example: `avt export --format safetensors`
    """
    from avtcli.exporting.export import export as run_export
    from avtcli.models.weights import open_weights

    assert file_format == "safetensors"
    with reporting() as on_event:
        result = run_export(open_weights(run, on_event=on_event), out=out, layer=layer, on_event=on_event)
    if as_json:
        say_json(asdict(result))
        return
    say(f"file          {result.file}", f"max_abs_diff  {result.max_abs_diff:g}  (loaded back in a fresh process)")
    say("load it with", *(f"  {line}" for line in result.load_with.split("; ")))
