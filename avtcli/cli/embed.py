"""`avt embed`."""

from pathlib import Path
from typing import Annotated, Literal

from avtcli.cli import options
from avtcli.cli.completion import complete_layers
from avtcli.cli.console import reporting, say, say_json
from avtcli.cli.launch import start_processes
from avtcli.cli.options import component_options, option
from avtcli.runtime.launcher import read_launch

_LAYER = "Layers to embed. Default: the code."
KINDS = ("backbone", "dataset", "augment")
_SPLIT = "Images to embed; all: the training images, then the test images."
_SIDE = "Side of a map after pooling. Default: 1, one vector per image."
_OUT = "A file ending in .safetensors, .npz or .parquet. Default: embeddings.safetensors in the run folder."


def embed(
    run: options.Run = None,
    backbone: options.Backbone = None,
    init_from: options.InitFrom = None,
    layer: Annotated[str | None, option(_LAYER, "NAME[,NAME...]", autocompletion=complete_layers())] = None,
    pool: Annotated[Literal["avg", "max", "none"], option("Spatial pooling of feature maps.")] = "avg",
    pool_size: Annotated[int | None, option(_SIDE, "N")] = None,
    split: Annotated[Literal["train", "test", "all"], option(_SPLIT, panel="Data")] = "all",
    dataset: options.Dataset = None,
    data_dir: options.DataDir = None,
    limit_train: options.LimitTrain = None,
    overrides: Annotated[list[str] | None, component_options(*KINDS)] = None,
    device: options.Device = "auto",
    processes: options.Processes = 1,
    workers: options.Workers = None,
    out: Annotated[Path | None, option(_OUT, "FILE", panel="Output")] = None,
    as_json: options.Json = False,
) -> None:
    """Write the features of every image to one file.

    Names and labels are written too, in the order of the data set.

    Example: `avt embed --dataset folder:photos --out photos.parquet -o augment.resize=32 -o augment.crop=32`
    """
    arguments = locals()
    from avtcli.config.resolution import options_from_texts
    from avtcli.embedding.embed import embed_as_asked

    start_processes(processes)
    with reporting() as on_event:
        result = embed_as_asked(arguments, options_from_texts(overrides or [], kinds=KINDS), on_event=on_event)
    if read_launch().rank > 0:
        return
    if as_json:
        say_json(result)
        return
    say(f"file    {result.file} ({result.bytes / 1e6:.3g} MB)", f"images  {result.count}")
    say(f"labels  {'yes' if result.labels else 'none'}", *(f"layer   {n} {list(shape)}" for n, shape in result.layers.items()))
    say("load it with", *(f"  {line}" for line in result.load_with.split("; ")))
