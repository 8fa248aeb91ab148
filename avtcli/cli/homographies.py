"""`avt gen-homographies`."""

from pathlib import Path
from typing import Annotated

import typer

from avtcli.cli.console import reporting, say, say_json, say_next, say_table
from avtcli.cli.options import Json, Seed, Transform, component_options, option
from avtcli.errors import AvtError

_OUT = "Default: homographies-FAMILY-SIZE.safetensors."


def gen_homographies(
    out: Annotated[Path | None, typer.Argument(metavar="OUT.safetensors", help=_OUT)] = None,
    transform: Transform = "projective",
    size: Annotated[int, option("Side of the images.", "PX", min=8)] = 224,
    count: Annotated[int, option("Number of homographies.", "N", min=2)] = 500_000,
    seed: Seed = 0,
    overrides: Annotated[list[str] | None, component_options("transform")] = None,
    as_json: Json = False,
) -> None:
    """Sample a bank of homographies for pretraining.

    `avt pretrain --homographies` draws from it. The file holds coeffs (N, 8) float32 in Pillow's order, and their mean and
    std (8,) float64.

    Example: `avt gen-homographies bank.safetensors --size 224`
    """
    from avtcli.config.components import Plugin
    from avtcli.config.resolution import options_from_texts, resolve_plugin, validate
    from avtcli.storage.banks import generate_bank

    given = options_from_texts(overrides or [], kinds=("transform",))
    asked = validate(Plugin, {"name": transform, **given.get("transform", {})}, where="--transform")
    plugin = resolve_plugin("transform", asked)
    out = out or Path(f"homographies-{plugin.name}-{size}.safetensors")
    if out.suffix != ".safetensors":
        raise AvtError(f"A bank is a file that ends in .safetensors, found {out}. Give {out.with_suffix('.safetensors')}.")
    with reporting() as on_event:
        result = generate_bank(out, plugin=plugin, size=size, count=count, seed=seed, on_event=on_event)
    if as_json:
        say_json(result)
        return
    say(f"{result.count} homographies for {result.size} px in {result.file} ({result.seconds} s)")
    say("", "coefficients a to h of Pillow's PERSPECTIVE")
    rows = [["mean", *(f"{value:.4g}" for value in result.mean)], ["std", *(f"{value:.4g}" for value in result.std)]]
    say_table(["", *"abcdefgh"], rows)
    say("")
    say_next(("avt", "pretrain", "--homographies", result.file))
