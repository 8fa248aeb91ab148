"""The options that several commands take, said once."""

import importlib.metadata
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from avtcli.errors import AvtError


def _complete(kind: str) -> Callable[[str], Iterator[str]]:
    def complete(incomplete: str) -> Iterator[str]:
        found = {entry.name for entry in importlib.metadata.entry_points(group=f"avtcli.{kind}s")}
        return (name for name in sorted(found) if name.startswith(incomplete))

    return complete


Run = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN", help="A run folder, a checkpoint or an exported file. Left out: the newest run under ./runs."
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:PATH]",
        help="The images; see `avt plugins list`.",
        autocompletion=_complete("dataset"),
        rich_help_panel="Data",
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:VARIANT]", help="The network to pretrain.", autocompletion=_complete("backbone"), rich_help_panel="Model"
    ),
]
MeasuredBackbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        metavar="NAME[:VARIANT]",
        help="A network by name instead of a run: random, or published with `-o backbone.pretrained=true`.",
        autocompletion=_complete("backbone"),
        rich_help_panel="Model",
    ),
]
Transform = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The family of transformations.", autocompletion=_complete("transform"), rich_help_panel="Model"
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="What is minimised.", autocompletion=_complete("objective"), rich_help_panel="Model"),
]
DataDir = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Where the data lies. Left out: $AVT_DATA, else ./data.", rich_help_panel="Data"),
]
LimitTrain = Annotated[
    int | None,
    typer.Option(metavar="N", help="Use a draw of so many training images, the same in every command.", rich_help_panel="Data"),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        metavar="KIND.KEY=VALUE",
        help="An option of a part; KIND is backbone, dataset, transform, objective, optimizer, schedule or augment.",
        rich_help_panel="Model",
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"] | None,
    typer.Option(help="Where the arithmetic happens.", rich_help_panel="Hardware"),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"] | None,
    typer.Option(
        help="Of the arithmetic. auto: bf16 on a GPU that has it, else fp32; on a CPU with AMX, bf16 may be twice as fast.",
        rich_help_panel="Hardware",
    ),
]
Workers = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Processes that read images which do not fit in memory. auto: one less than the CPUs, at most 8.",
        rich_help_panel="Hardware",
    ),
]
Seed = Annotated[
    int | None, typer.Option(metavar="N", help="Every random draw follows from it.", rich_help_panel="Optimisation")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel="Output")]


def parts_of(text: str | None) -> tuple[str, ...] | None:
    """Read `NAME,NAME`; none where nothing was given."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def parts_to_measure(
    command: str, options: list[str] | None, *, tables: Collection[str] = (), **named: str | None
) -> dict[str, Any]:
    """What a measuring command is told of its parts: a plugin or none for each, and `augment`.

    Args:
        command: its name, for messages.
        options: `KIND.KEY=VALUE`.
        tables: the kinds to give as tables, whose options may stand without a name.
        named: the names of the parts by kind.

    Raises:
        AvtError: for options that the command does not take, or of a part that is not named.
    """
    from avtcli.config.components import Augment, Plugin
    from avtcli.config.resolution import options_from_texts, validate

    given = options_from_texts(options or [])
    augment = given.pop("augment", None)
    for kind, values in given.items():
        if kind not in named:
            raise AvtError(f"{command} takes options of {', '.join(named)} and augment only, found '{kind}'.")
        if named[kind] is None and kind not in tables:
            raise AvtError(f"`-o {kind}.{next(iter(values))}` is an option of a {kind} that is not named: give --{kind} too.")
    for key in augment or {}:
        if key in ("padding", "flip"):
            raise AvtError(f"{command} pads and mirrors nothing, found `-o augment.{key}`: it takes resize and crop only.")
    parts = {kind: {**({"name": name} if name else {}), **given.get(kind, {})} for kind, name in named.items()}
    plugins = {k: part if k in tables else Plugin.model_validate(part) if part else None for k, part in parts.items()}
    return {**plugins, "augment": None if augment is None else validate(Augment, augment, where="-o augment.KEY")}


def workers_from_text(text: str | None) -> int | None:
    """Read `--workers`: a number, or none for auto.

    Raises:
        AvtError: for anything else.
    """
    if text is None or text == "auto":
        return None
    if not text.isdecimal():
        raise AvtError(f"--workers takes a number or auto, found '{text}'.")
    return int(text)
