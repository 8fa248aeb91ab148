"""`avt embed`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from avtcli.cli.console import reporting, say, say_json
from avtcli.cli.options import (
    DataDir,
    Dataset,
    Device,
    Json,
    LimitTrain,
    MeasuredBackbone,
    Options,
    Run,
    Workers,
    parts_of,
    parts_to_measure,
    workers_from_text,
)
from avtcli.errors import AvtError


def embed(
    run: Run = None,
    backbone: MeasuredBackbone = None,
    layer: Annotated[str | None, typer.Option(metavar="NAME[,NAME...]", help="Layers to embed. Default: the code.")] = None,
    pool: Annotated[Literal["avg", "max", "none"], typer.Option(help="Pooling of maps; none keeps their size.")] = "avg",
    pool_size: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Side of a map after pooling. Default: 1, one vector per image."),
    ] = None,
    split: Annotated[
        Literal["train", "test", "all"],
        typer.Option(help="Images to embed; all: the training images, then the test images.", rich_help_panel="Data"),
    ] = "all",
    dataset: Dataset = None,
    data_dir: DataDir = None,
    limit_train: LimitTrain = None,
    options: Options = None,
    device: Device = None,
    workers: Workers = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A .safetensors, .npz or .parquet file. Default: embeddings.safetensors in the run folder.",
            rich_help_panel="Output",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the features of every image to one file, with names and labels, in the order of the data set.

    Example: `avt embed --dataset folder:photos --out photos.parquet -o augment.resize=32 -o augment.crop=32`
    """
    from avtcli.embedding.embed import embed as run_embed
    from avtcli.embedding.embedding_setup import EmbeddingRequest
    from avtcli.features.evaluation_target import load_target
    from avtcli.runtime.context import Context

    if pool == "none" and pool_size is not None:
        raise AvtError("--pool none does not pool maps, and --pool-size is the side of a pooled map: leave one of them out.")
    given = parts_to_measure("embed", options, backbone=backbone, dataset=dataset)
    request = EmbeddingRequest(
        split=split, layers=parts_of(layer) or (), pool=pool, pool_size=pool_size or 1, limit_train=limit_train
    )
    with reporting() as on_event:
        context = Context.build(device=device or "auto", workers=workers_from_text(workers), on_event=on_event)
        target = load_target(run, data_dir=data_dir, context=context, **given)
        result = run_embed(target, request, out=out, context=context)
    if as_json:
        say_json(asdict(result))
        return
    say(f"file    {result.file} ({result.bytes / 1e6:.3g} MB)", f"images  {result.count}")
    say(f"labels  {'yes' if result.labels else 'none'}", *(f"layer   {n} {list(shape)}" for n, shape in result.layers.items()))
    say("load it with", *(f"  {line}" for line in result.load_with.split("; ")))
