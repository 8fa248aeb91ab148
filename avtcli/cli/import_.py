"""`avt import`."""

from pathlib import Path
from typing import Annotated

import typer

from avtcli.cli.console import reporting, say_facts, say_json, say_next
from avtcli.cli.options import Json, option


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.pth", help="A checkpoint published by the authors of AVT.")],
    backbone: Annotated[str | None, option("Backbone, such as nin. Default: inferred from the file.", "NAME")] = None,
    out: Annotated[Path | None, option("Run folder. Default: runs/DATE-import-BACKBONE-OBJECTIVE.", "DIR")] = None,
    as_json: Json = False,
) -> None:
    """Convert a published checkpoint to a run folder; no code in the file is executed.

    The run folder can be probed, evaluated and exported.

    Example: `avt import cifar10.pth`
    """
    from avtcli.exporting.published_import import import_checkpoint

    with reporting() as on_event:
        result = import_checkpoint(file, backbone=backbone, out=out, on_event=on_event)
    if as_json:
        say_json(result)
        return
    names = f"{len(result.matched)} matched, {len(result.missing)} missing, {len(result.unexpected)} unexpected"
    facts = {"run": result.run, "backbone": result.backbone, "layout": result.layout.replace("_", " "), "epoch": result.epoch}
    say_facts({**facts, "names": names})
    say_next(("avt", "probe", result.run))
