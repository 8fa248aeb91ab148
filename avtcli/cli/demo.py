"""`avt demo`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from avtcli.cli.console import reporting, say, say_json, say_table
from avtcli.cli.options import Json


def demo(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder. Left out: runs/DATE-fashion-mini-nin-avt.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Go the whole way on the embedded images: pretrain, probe against random, export. Minutes on a CPU, no network."""
    from avtcli.reporting.demo import demo as run_demo

    with reporting() as on_event:
        result = run_demo(out, on_event=on_event)
    if as_json:
        say_json(asdict(result))
        return
    trained, random = result.probe.results[0], result.probe.baseline[0]
    pretrained = result.pretrain
    say(f"Pretrained on 2 000 images of Fashion-MNIST without labels in {pretrained.seconds:.0f} s: {pretrained.run}")
    say(f"It tells where an image's corners went to within {pretrained.mace_px:.1f} px.", "")
    rows = [("pretrained", f"{trained.top1:.1f}"), ("random weights", f"{random.top1:.1f}")]
    say_table((f"linear probe at {trained.layer}, {trained.pool} pooling", "top-1 %"), rows)
    say("", f"Weights: {result.export.file}. Load them with", *(f"  {line}" for line in result.export.load_with.split("; ")))
    say("", "Next:", "  avt pretrain --dataset cifar10 --backbone nin", f"  avt probe {pretrained.run} --layer all")
    say("  avt pretrain --help")
