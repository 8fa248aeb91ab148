"""Options that several commands share, and the reading of their values."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from avtcli.cli.completion import complete_component_options, complete_plugin, complete_run


def option(text: str, metavar: str | None = None, *, flag: str | None = None, panel: str | None = None, **more: Any) -> Any:
    """Make an option from its help, the placeholder of its value, its flag if not the parameter's name, and its panel."""
    return typer.Option(*([flag] if flag else []), help=text, metavar=metavar, rich_help_panel=panel, **more)


def component_options(*kinds: str) -> Any:
    """Make the option `-o` of a command that takes components of these kinds."""
    text = f"Override an option of a component; KIND is {', '.join(kinds)}."
    text += " Keys and defaults: `avt plugins show NAME`; a run's config.toml has all."
    complete = complete_component_options(*kinds)
    return option(text, "KIND.KEY=VALUE", flag="-o", panel="Model", autocompletion=complete)


def number_or_auto(text: str) -> int | None:
    """Read `N|auto`; auto gives None, and what commands check is a number."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise typer.BadParameter(f"expected auto or a number, found {text!r}.") from None


_BACKBONE = (
    "Backbone by name instead of a run: random weights, or published ones with `-o backbone.pretrained=true`. Default: none."
)
_INIT_FROM = "Weights that the backbone by name starts from: a run, a checkpoint or a file. Default: none."
_FAMILY = "Family of transformations. Default: that of the run, else projective."
_DATASET = "Images. Default: those of the run."
_LIMIT = "Use a random subset of N training images, the same in every command. Default: all."
_CALIBRATE = "Replace the network's BatchNorm statistics by those of 1000 training images, for weights that never saw the data."
_DEVICE = "Compute device; auto takes CUDA, then MPS, then the CPU."
_RUN = "A run folder, a checkpoint or an exported file. Default: the newest run under ./runs."
_PROCESSES = "Processes that share the images."
_WORKERS = "Processes that decode images which do not fit in memory. Default: one fewer than the CPUs, at most 8."

Run = Annotated[Path | None, typer.Argument(metavar="RUN", help=_RUN, autocompletion=complete_run)]
Backbone = Annotated[str | None, option(_BACKBONE, "NAME[:VARIANT]", panel="Model", autocompletion=complete_plugin("backbone"))]
InitFrom = Annotated[Path | None, option(_INIT_FROM, "RUN|FILE", panel="Model", autocompletion=complete_run)]
Transform = Annotated[str | None, option(_FAMILY, "NAME[+NAME...]", panel="Model", autocompletion=complete_plugin("transform"))]
Dataset = Annotated[str | None, option(_DATASET, "NAME[:PATH]", panel="Data", autocompletion=complete_plugin("dataset"))]
DataDir = Annotated[str | None, option("Folder of the data sets. Default: $AVT_DATA, else ./data.", "DIR", panel="Data")]
LimitTrain = Annotated[int | None, option(_LIMIT, "N", panel="Data")]
CalibrateBatchNorm = Annotated[bool, option(_CALIBRATE, flag="--calibrate-bn")]
Seed = Annotated[int, option("Seed of every random draw.", "N", panel="Optimisation")]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], option(_DEVICE, panel="Hardware")]
Workers = Annotated[int | None, option(_WORKERS, "N|auto", panel="Hardware", parser=number_or_auto)]
Processes = Annotated[int, option(_PROCESSES, "N", panel="Hardware", min=1)]
OutJson = Annotated[
    Path | None, option("Also write the result to this file. Default: the run folder alone.", "FILE.json", panel="Output")
]
Verbose = Annotated[bool, option("Print the whole protocol.", flag="--verbose", panel="Output")]
Json = Annotated[bool, option("Print one JSON document on stdout.", flag="--json", panel="Output")]
