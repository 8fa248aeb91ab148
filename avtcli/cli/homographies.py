"""`avt gen-homographies`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from avtcli.cli.console import reporting, say, say_json
from avtcli.cli.options import Json, Options, Seed, Transform


def gen_homographies(
    out: Annotated[
        Path | None,
        typer.Argument(metavar="OUT.safetensors", help="The file to write. Left out: homographies-FAMILY-SIZE.safetensors."),
    ] = None,
    transform: Transform = "projective",
    size: Annotated[int, typer.Option(metavar="PX", min=8, help="The side of the images.")] = 224,
    count: Annotated[int, typer.Option(metavar="N", min=2, help="How many to draw.")] = 500_000,
    seed: Seed = 0,
    options: Options = None,
    as_json: Json = False,
) -> None:
    """Draw a bank of homographies for `avt pretrain --homographies`.

    The file holds coeffs (N, 8) float32 in Pillow's order, and their mean and std (8,) float64.

    Example: `avt gen-homographies bank.safetensors --size 224`
    """
    from avtcli.config.components import Plugin
    from avtcli.config.resolution import options_from_texts
    from avtcli.errors import AvtError
    from avtcli.storage.banks import generate_bank

    given = options_from_texts(options or [])
    for kind in given:
        if kind != "transform":
            raise AvtError(f"gen-homographies takes options of the transform only, found '{kind}'.")
    plugin = Plugin.model_validate({"name": transform, **given.get("transform", {})})
    out = out or Path(f"homographies-{plugin.name}-{size}.safetensors")
    with reporting() as on_event:
        result = generate_bank(out, plugin=plugin, size=size, count=count, seed=seed or 0, on_event=on_event)
    if as_json:
        say_json(asdict(result))
        return
    say(f"{result.count} homographies for {result.size} px in {result.file} ({result.seconds} s)")
    say("mean  " + "  ".join(f"{value:.4g}" for value in result.mean))
    say("std   " + "  ".join(f"{value:.4g}" for value in result.std))
    say(f"next: avt pretrain --homographies {result.file}")
