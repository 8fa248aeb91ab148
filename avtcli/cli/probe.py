"""`avt probe`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from avtcli.cli.console import reporting, say, say_json, say_table
from avtcli.cli.options import DataDir, Dataset, Device, Json, LimitTrain, Run, Seed

if TYPE_CHECKING:
    from avtcli.runs.probe import ProbeResult


def probe(
    run: Run = None,
    layer: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME...]|all", help="The layers to probe. Left out: the code.")
    ] = None,
    pool: Annotated[Literal["max", "avg", "none"] | None, typer.Option(help="How maps are reduced.")] = None,
    pool_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The side of a map after pooling. Left out: 4.")
    ] = None,
    head: Annotated[Literal["linear"] | None, typer.Option(help="The classifier.")] = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    limit_train: LimitTrain = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Passes over the features.")] = None,
    samples: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Samples of the code to average; 0 takes its mean.")
    ] = None,
    baseline: Annotated[
        bool | None, typer.Option("--baseline/--no-baseline", help="Whether a random backbone is probed beside.")
    ] = None,
    seed: Seed = None,
    device: Device = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the result here too.", rich_help_panel="Output")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a classifier on frozen features and report its accuracy beside a random backbone's.

    The learning rate is chosen on a held-out part of the training images; the test images are looked at once.

    Example: `avt probe --layer conv2 --pool max`
    """
    from avtcli.config import ProbeConfig, merge, validate
    from avtcli.runs.loading import open_source
    from avtcli.runs.probe import probe as run_probe

    given = {
        "layers": None if layer is None else tuple(name.strip() for name in layer.split(",")),
        "pool": pool,
        "pool_size": pool_size,
        "head": head,
        "dataset": None if dataset is None else {"name": dataset},
        "data_dir": data_dir,
        "limit_train": limit_train,
        "epochs": epochs,
        "samples": samples,
        "baseline": baseline,
        "seed": seed,
        "device": device,
    }
    config = validate(ProbeConfig, merge({}, given), where="the command line")
    with reporting() as on_event:
        result = run_probe(open_source(run, on_event=on_event), config, out=out, on_event=on_event)
    if as_json:
        say_json(asdict(result))
    else:
        _print(result)


def _print(result: "ProbeResult") -> None:
    random = {head.layer: head for head in result.baseline}
    header = ["layer", "pool", "head", "top-1 %", "top-5 %"]
    rows = []
    for head in result.results:
        row = [head.layer, head.pool, head.head, f"{head.top1:.2f}", f"{head.top5:.2f}"]
        if random:
            row += [f"{random[head.layer].top1:.2f}", f"{head.top1 - random[head.layer].top1:+.2f}"]
        rows.append(row)
    say(f"run  {result.run}", "")
    say_table([*header, "random top-1 %", "gain"] if random else header, rows)
    say("")
    for key, value in result.protocol.items():
        if value is not None:
            say(f"{key:<22}  {', '.join(map(str, value)) if isinstance(value, list) else value}")
