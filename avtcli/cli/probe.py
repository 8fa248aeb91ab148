"""`avt probe`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avtcli.cli.console import reporting, say, say_json, say_table
from avtcli.cli.options import (
    Backbone,
    DataDir,
    Device,
    Json,
    LimitTrain,
    Run,
    Seed,
    Workers,
    component_options,
    parts_of,
)
from avtcli.probing.heads import HEADS

if TYPE_CHECKING:
    from avtcli.probing.probe import ProbeResult
    from avtcli.probing.probe_setup import HeadResult


def probe(
    run: Run = None,
    backbone: Backbone = None,
    layer: Annotated[
        str | None,
        typer.Option(metavar="NAME[,NAME...]|all", help="The layers to probe. Left out: the recipe's, else the code."),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            metavar="max|avg|none[,...]",
            help="How maps are reduced. Left out: the recipe's, else max for linear, knn and ridge and none for the others.",
        ),
    ] = None,
    pool_size: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="The side of a map after pooling. Left out: the recipe's for that layer, else 4."
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(metavar="|".join(HEADS), help="The classifier. Left out: the recipe's, else linear.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml", help="A published evaluation; see `avt recipes list`. Left out: our own protocol."
        ),
    ] = None,
    finetune: Annotated[bool | None, typer.Option("--finetune", help="Train the backbone too, up to the layer.")] = None,
    samples: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Samples of the code to average. Left out: the recipe's, else 0, its mean."),
    ] = None,
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment/--no-augment",
            help="Crop and flip the training images anew each epoch. Left out: as the recipe says, else to fine-tune alone.",
        ),
    ] = None,
    copies: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="With --augment: keep the features of N draws of each image, and take turns."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Passes over the training images; the schedule is stretched or shrunk.",
            rich_help_panel="Optimisation",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="X", min=1e-12, help="The peak rate. Left out: chosen on held-out images.", rich_help_panel="Optimisation"
        ),
    ] = None,
    seed: Seed = 0,
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Train the heads with so many seeds.", rich_help_panel="Optimisation"),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:PATH][,...]", help="The labelled images. Left out: those of the run.", rich_help_panel="Data"
        ),
    ] = None,
    data_dir: DataDir = None,
    limit_train: LimitTrain = None,
    shots: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="Train on so many images of each class.", rich_help_panel="Data"),
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option(
            metavar="X", min=0, max=1, help="Train on such a share of each class, as in 0.01.", rich_help_panel="Data"
        ),
    ] = None,
    baseline: Annotated[
        bool | None, typer.Option("--baseline/--no-baseline", help="Whether a random backbone is probed beside.")
    ] = None,
    supervised: Annotated[
        bool | None, typer.Option("--supervised", help="Probe a backbone trained with all the labels beside.")
    ] = None,
    options: Annotated[list[str] | None, component_options("backbone", "dataset", "augment", "optimizer", "schedule")] = None,
    device: Device = "auto",
    workers: Workers = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the result here too.", rich_help_panel="Output")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a classifier on frozen features and report its test accuracy.

    Without a recipe what is to be chosen, a learning rate or k, is chosen on a held-out part of the training images; the test
    images decide nothing.

    Example: `avt probe --layer conv2 --pool max`

    Example: `avt probe --layer all --head knn --seeds 3`

    Example: `avt probe --recipe cifar10-conv --shots 20,100,400,1000,5000`
    """
    from avtcli.config.resolution import merge, options_from_texts, resolve_probe
    from avtcli.probing.probe import probe as run_probe

    given: dict[str, Any] = {
        "backbone": None if backbone is None else {"name": backbone},
        "layers": parts_of(layer),
        "pool": parts_of(pool),
        "pool_size": pool_size,
        "head": None if head is None else {"name": head},
        "finetune": finetune,
        "samples": samples,
        "augmented": augment,
        "copies": copies,
        "epochs": epochs,
        "lr": lr,
        "seed": seed,
        "seeds": seeds,
        "dataset": None if dataset is None else {"name": dataset},
        "data_dir": data_dir,
        "limit_train": limit_train,
        "shots": parts_of(shots),
        "fraction": fraction,
        "baseline": baseline,
        "supervised": supervised,
        "device": device,
        "workers": workers,
    }
    config = resolve_probe(merge(merge({}, given), options_from_texts(options or [])), recipe=recipe)
    with reporting() as on_event:
        result = run_probe(run, config, out=out, on_event=on_event)
    if as_json:
        say_json(asdict(result))
    else:
        _print(result)


def _print(result: "ProbeResult") -> None:
    say(f"run  {result.run}", "")
    say_table(*_table(result))
    say("")
    for key, value in result.protocol.items():
        if value is not None:
            say(f"{key:<22}  {_in_words(value)}")


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(part)}" for key, part in value.items() if part is not None)
    return "; ".join(map(_in_words, value)) if isinstance(value, list) else str(value)


_COLUMNS = ("dataset", "layer", "pool", "head", "shots")
"""What tells heads apart; a column that says the same everywhere is left out, the layer, pool and head never."""


def _table(result: "ProbeResult") -> tuple[list[str], list[list[str]]]:
    """A row a head; several seeds give their mean and standard deviation."""
    sides = result.protocol["pool_size"] or {}
    groups, random, labels = (_grouped(heads) for heads in (result.results, result.baseline, result.supervised))
    shown = [c for c in _COLUMNS if c in ("layer", "pool", "head") or len({getattr(h, c) for h in result.results}) > 1]
    header = [
        *shown,
        "top-1 %",
        "top-5 %",
        *(["random top-1 %", "gain"] * bool(random)),
        *(["supervised top-1 %"] * bool(labels)),
    ]
    rows = []
    for key, heads in groups.items():
        about = {c: "all" if getattr(heads[0], c) is None else str(getattr(heads[0], c)) for c in shown}
        if about["pool"] != "none":
            about["pool"] += f" {sides[heads[0].layer]}"
        figures = [_mean([head.top1 for head in heads]), _mean([head.top5 for head in heads])]
        if random:
            against = [head.top1 for head in random[key]]
            figures += [_mean(against), f"{mean(head.top1 for head in heads) - mean(against):+.2f}"]
        if labels:
            figures.append(_mean([head.top1 for head in labels[key]]))
        rows.append([*about.values(), *figures])
    return header, rows


def _grouped(heads: "Sequence[HeadResult]") -> "dict[tuple[object, ...], list[HeadResult]]":
    groups: dict[tuple[object, ...], list[HeadResult]] = {}
    for head in heads:
        groups.setdefault(tuple(getattr(head, column) for column in _COLUMNS), []).append(head)
    return groups


def _mean(figures: Sequence[float]) -> str:
    spread = f" ± {stdev(figures):.2f}" if len(figures) > 1 else ""
    return f"{mean(figures):.2f}{spread}"
