"""`avt import`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from avtcli.cli.console import reporting, say, say_json
from avtcli.cli.options import Json


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.pth", help="A checkpoint that the authors of AVT published.")],
    backbone: Annotated[
        Literal["nin", "alexnet"] | None, typer.Option(help="The network. Left out: the names in the file say it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder. Left out: runs/DATE-import-BACKBONE-OBJECTIVE.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a published checkpoint into a run folder that probe, evaluate and export take; no code in the file is run.

    Example: `avt import cifar10.pth`
    """
    from avtcli.exporting.published_import import import_checkpoint

    with reporting() as on_event:
        result = import_checkpoint(file, backbone=backbone, out=out, on_event=on_event)
    if as_json:
        say_json(asdict(result))
        return
    counts = f"{len(result.matched)} matched, {len(result.missing)} missing, {len(result.unexpected)} unexpected"
    say(
        f"run       {result.run}",
        f"backbone  {result.backbone}",
        f"layout    {result.layout.replace('_', ' ')}",
        f"epoch     {'not stated' if result.epoch is None else result.epoch}",
        f"names     {counts}",
        f"next: avt probe {result.run}",
    )
