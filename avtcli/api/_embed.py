"""`avtcli.embed`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from avtcli.api._calling import Device, Options, calling, read_options, with_paths

if TYPE_CHECKING:
    from avtcli.embedding.embed import EmbedResult


def embed(
    run: str | Path | None = None,
    *,
    backbone: str | None = None,
    init_from: str | Path | None = None,
    layer: str | Sequence[str] | None = None,
    pool: Literal["avg", "max", "none"] = "avg",
    pool_size: int | None = None,
    split: Literal["train", "test", "all"] = "all",
    options: Options | None = None,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    limit_train: int | None = None,
    device: Device = "auto",
    workers: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> "EmbedResult":
    """Write the features of every image to one file, as `avt embed` does.

    Names and labels are written too, in the order of the data set.

    Args:
        run: a run folder, a checkpoint or an exported file; "last" or none is the newest run under ./runs.
        backbone: a backbone by name instead of a run: random weights, or published ones with {"backbone.pretrained": True}.
        init_from: weights that the backbone by name starts from: a run, a checkpoint or a file.
        layer: layers to embed, one or several. Default: the code.
        pool: spatial pooling of feature maps.
        pool_size: side of a map after pooling. Default: 1, one vector per image.
        split: images to embed; "all" has the training images, then the test images.
        options: options of components as KIND.KEY, as in {"augment.resize": 32, "augment.crop": 32}.
        dataset: images, NAME or NAME:PATH. Default: those of the run.
        data_dir: folder of the data sets. Default: $AVT_DATA, else ./data.
        limit_train: use a random subset of that many training images, the same in every command.
        device: where to compute; "auto" takes CUDA, then MPS, then the CPU.
        workers: processes that decode images which do not fit in memory.
        out: a file ending in .safetensors, .npz or .parquet. Default: embeddings.safetensors in the run folder.
        progress: show settings, progress and notices on stderr, as the command line does.

    Returns:
        The file, its layers and their shapes; what `avt embed --json` prints.

    Raises:
        AvtError: for a layer that does not exist, images that do not fit, or a file that exists.
        RunFailedError: an AvtError, if features are not finite, or the file, read back, is not what was computed.
    """
    arguments = with_paths(locals())
    from avtcli.cli.embed import KINDS
    from avtcli.embedding.embed import embed_as_asked

    with calling(progress) as on_event:
        return embed_as_asked(arguments, read_options(options, KINDS), on_event=on_event)
