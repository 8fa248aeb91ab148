"""`avtcli.probe`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avtcli.api._calling import Device, Options, calling, path_of, run_of, settings_of

if TYPE_CHECKING:
    from avtcli.probing.probe import ProbeResult

Pool = Literal["max", "avg", "none"]


def probe(
    run: str | Path | None = None,
    *,
    backbone: str | None = None,
    init_from: str | Path | None = None,
    layer: str | Sequence[str] | None = None,
    head: str | None = None,
    recipe: str | Path | None = None,
    options: Options | None = None,
    pool: Pool | Sequence[Pool] | None = None,
    pool_size: int | None = None,
    samples: int | None = None,
    finetune: bool | None = None,
    supervised: bool | None = None,
    augment: bool | None = None,
    copies: int | None = None,
    baseline: bool | None = None,
    calibrate_bn: bool | None = None,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    limit_train: int | None = None,
    shots: int | Sequence[int] | None = None,
    fraction: float | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    seeds: int | None = None,
    device: Device | None = None,
    workers: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> "ProbeResult":
    """Train a classifier on frozen features and measure its test accuracy, as `avt probe` does.

    What is left out, None, comes from the recipe, else from the default that `avt probe --help` states. A run folder keeps the
    result in its folder `probes`.

    Args:
        run: a run folder, a checkpoint or an exported file; "last" or none is the newest run under ./runs.
        backbone: a backbone by name instead of a run: random weights, or published ones with {"backbone.pretrained": True}.
        init_from: weights that the backbone by name starts from: a run, a checkpoint or a file.
        layer: layers to probe, one or several, or "all". Default: the code.
        head: classifier on the features.
        recipe: a published evaluation, by name or as a TOML file. Default: our own protocol.
        options: options of components as KIND.KEY, as in {"head.k": 20, "augment.crop": 32}.
        pool: spatial pooling of feature maps, one head each. Default: the head's own.
        pool_size: side of every map after pooling; smaller maps stay as they are.
        samples: samples of the code to average; 0 takes its mean.
        finetune: train the backbone too.
        supervised: also probe a backbone trained with all labels from random weights.
        augment: crop and flip the training images again in each epoch.
        copies: augmented copies of each image whose features are cached and used in turn.
        baseline: also probe a randomly initialised backbone.
        calibrate_bn: replace the BatchNorm statistics by those of 1000 training images.
        dataset: labelled images, NAME or NAME:PATH, several with commas. Default: those of the run.
        data_dir: folder of the data sets. Default: $AVT_DATA, else ./data.
        limit_train: train on a random subset of that many images, the same in every command.
        shots: train on that many images per class, one head for each number.
        fraction: train on a fraction of each class.
        epochs: passes over the training images.
        lr: peak learning rate. Default: the recipe's, else chosen on held-out images.
        seed: of the heads' weights, order and augmentation of the images, samples of the code and random baseline.
        seeds: train the heads with that many seeds.
        device: where to compute; "auto" takes CUDA, then MPS, then the CPU.
        workers: processes that decode images which do not fit in memory.
        out: also write the result to this JSON file.
        progress: show settings, progress and notices on stderr, as the command line does.

    Returns:
        The figures of every head with their protocol; what `avt probe --json` prints.

    Raises:
        AvtError: for data without labels or that do not fit, a layer that does not exist, or settings that are not right.
    """
    return _probe(locals())


def _probe(arguments: dict[str, Any]) -> "ProbeResult":
    from avtcli.config.probe_config import ProbeConfig
    from avtcli.config.resolution import resolve_probe
    from avtcli.probing.probe import probe as run_probe

    recipe = arguments["recipe"]
    given = settings_of(ProbeConfig, arguments, options=arguments["options"])
    config = resolve_probe(given, recipe=None if recipe is None else str(recipe))
    with calling(arguments["progress"]) as on_event:
        return run_probe(run_of(arguments["run"]), config, out=path_of(arguments["out"]), on_event=on_event)
