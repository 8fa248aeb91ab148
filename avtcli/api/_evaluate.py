"""`avtcli.evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avtcli.api._calling import Device, Options, calling, read_options, with_paths

if TYPE_CHECKING:
    from avtcli.evaluation.evaluate import EvaluateResult


def evaluate(
    run: str | Path | None = None,
    *,
    backbone: str | None = None,
    init_from: str | Path | None = None,
    transform: str | None = None,
    layer: str | Sequence[str] | None = None,
    options: Options | None = None,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    count: int | None = None,
    calibrate_bn: bool = False,
    seed: int = 0,
    device: Device = "auto",
    workers: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> "EvaluateResult":
    """Measure how equivariant a representation is, as `avt evaluate` does.

    The run's decoder and ridge regression on frozen features predict the transformation between two views. A run folder
    receives evaluate.json and evaluate.png.

    Args:
        run: a run folder, a checkpoint or an exported file; "last" or none is the newest run under ./runs.
        backbone: a backbone by name instead of a run: random weights, or published ones with {"backbone.pretrained": True}.
        init_from: weights that the backbone by name starts from: a run, a checkpoint or a file.
        transform: family of transformations. Default: that of the run.
        layer: layers whose features ridge regression takes, one at a time: one or several, or "all". Default: the code.
        options: options of components as KIND.KEY, as in {"transform.shift": 0.1, "augment.crop": 32}.
        dataset: images, NAME or NAME:PATH. Default: those of the run.
        data_dir: folder of the data sets. Default: $AVT_DATA, else ./data.
        count: held-out images. Default: 1000, or all.
        calibrate_bn: replace the BatchNorm statistics by those of 1000 training images.
        seed: of every random draw.
        device: where to compute; "auto" takes CUDA, then MPS, then the CPU.
        workers: processes that decode images which do not fit in memory.
        out: also write the result to this JSON file.
        progress: show settings, progress and notices on stderr, as the command line does.

    Returns:
        The figures with their protocol; what `avt evaluate --json` prints.

    Raises:
        AvtError: for a layer or family that does not exist, images that do not fit, or more of them than there are.
    """
    arguments = with_paths(locals())
    from avtcli.cli.evaluate import KINDS
    from avtcli.evaluation.evaluate import evaluate_as_asked

    with calling(progress) as on_event:
        return evaluate_as_asked(arguments, read_options(options, KINDS), on_event=on_event)
