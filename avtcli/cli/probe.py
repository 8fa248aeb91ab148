"""`avt probe`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from avtcli.cli.console import reporting, say, say_json, say_table
from avtcli.cli.options import DataDir, Dataset, Device, Json, LimitTrain, Options, Run, Seed, Workers, workers_from_text

if TYPE_CHECKING:
    from avtcli.runs.probe import ProbeResult
    from avtcli.runs.probe_heads import HeadResult

Head = Literal["linear", "mlp1", "mlp2", "mlp3", "conv", "nonlinear"]


def probe(
    run: Run = None,
    layer: Annotated[
        str | None,
        typer.Option(metavar="NAME[,NAME...]|all", help="The layers to probe. Left out: the recipe's, else the code."),
    ] = None,
    pool: Annotated[
        Literal["max", "avg", "none"] | None,
        typer.Option(help="How maps are reduced. Left out: the recipe's, else max for the linear head alone."),
    ] = None,
    pool_size: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="The side of a map after pooling. Left out: the recipe's for that layer, else 4."
        ),
    ] = None,
    head: Annotated[Head | None, typer.Option(help="The classifier. Left out: the recipe's, else linear.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml", help="A published evaluation; see `avt recipes list`. Left out: our own protocol."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Samples of the code to average. Left out: the recipe's, else 0, its mean."),
    ] = None,
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment/--no-augment",
            help="Crop and flip the training images anew each epoch. Left out: as the recipe says, else not.",
        ),
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
    seed: Seed = None,
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Train the heads with so many seeds.", rich_help_panel="Optimisation"),
    ] = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    limit_train: LimitTrain = None,
    shots: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="Train on so many images of each class.", rich_help_panel="Data"),
    ] = None,
    baseline: Annotated[
        bool | None, typer.Option("--baseline/--no-baseline", help="Whether a random backbone is probed beside.")
    ] = None,
    options: Options = None,
    device: Device = None,
    workers: Workers = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the result here too.", rich_help_panel="Output")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a classifier on frozen features and report its accuracy beside a random backbone's.

    Without a recipe the learning rate is chosen on a held-out part of the training images, and the test images decide nothing.

    Example: `avt probe --layer conv2 --pool max`

    Example: `avt probe --recipe cifar10-conv --shots 20,100,400,1000,5000`
    """
    from avtcli.runs.loading import open_source
    from avtcli.runs.probe import probe as run_probe
    from avtcli.settings import merge, options_from_texts, resolve_probe

    given: dict[str, Any] = {
        "layers": None if layer is None else _parts(layer),
        "pool": pool,
        "pool_size": pool_size,
        "head": head,
        "samples": samples,
        "augmented": augment,
        "epochs": epochs,
        "seed": seed,
        "seeds": seeds,
        "dataset": None if dataset is None else {"name": dataset},
        "data_dir": data_dir,
        "limit_train": limit_train,
        "shots": None if shots is None else _parts(shots),
        "baseline": baseline,
        "device": device,
        "workers": workers_from_text(workers),
    }
    config = resolve_probe(merge(given, options_from_texts(options or [])), recipe=recipe)
    with reporting() as on_event:
        result = run_probe(open_source(run, on_event=on_event), config, out=out, on_event=on_event)
    if as_json:
        say_json(asdict(result))
    else:
        _print(result)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _print(result: "ProbeResult") -> None:
    say(f"run  {result.run}", "")
    say_table(*_table(result))
    say("")
    for key, value in result.protocol.items():
        if value is not None:
            say(f"{key:<22}  {_in_words(value)}")


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(result: "ProbeResult") -> tuple[list[str], list[list[str]]]:
    """A row a layer and number of shots; several seeds give their mean and standard deviation."""
    groups: dict[tuple[str, int | None], list[HeadResult]] = {}
    random: dict[tuple[str, int | None], list[HeadResult]] = {}
    for heads, into in ((result.results, groups), (result.baseline, random)):
        for head in heads:
            into.setdefault((head.layer, head.shots), []).append(head)
    with_shots, sides = any(shots is not None for _, shots in groups), result.protocol["pool_size"]
    header = ["layer", "pool", "head", *(["shots"] if with_shots else []), "top-1 %", "top-5 %"]
    rows = []
    for (layer, shots), heads in groups.items():
        pool = heads[0].pool if heads[0].pool == "none" else f"{heads[0].pool} {sides[layer]}"
        figures = [_mean([head.top1 for head in heads]), _mean([head.top5 for head in heads])]
        if random:
            against = [head.top1 for head in random[layer, shots]]
            figures += [_mean(against), f"{mean(head.top1 for head in heads) - mean(against):+.2f}"]
        rows.append([layer, pool, heads[0].head, *([str(shots)] if with_shots else []), *figures])
    return [*header, "random top-1 %", "gain"] if random else header, rows


def _mean(figures: Sequence[float]) -> str:
    spread = f" ± {stdev(figures):.2f}" if len(figures) > 1 else ""
    return f"{mean(figures):.2f}{spread}"
