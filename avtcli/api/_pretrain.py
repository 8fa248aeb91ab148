"""`avtcli.pretrain`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avtcli.api._calling import Device, Options, calling, path_of, run_of, settings_of
from avtcli.errors import AvtError

if TYPE_CHECKING:
    from avtcli.training.pretrain import PretrainResult


def pretrain(
    *,
    dataset: str | None = None,
    backbone: str | None = None,
    transform: str | None = None,
    objective: str | None = None,
    recipe: str | Path | None = None,
    options: Options | None = None,
    epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    limit_train: int | None = None,
    data_dir: str | Path | None = None,
    homographies: str | Path | None = None,
    on_bad_image: Literal["skip", "raise"] | None = None,
    max_bad_fraction: float | None = None,
    init_from: str | Path | None = None,
    device: Device | None = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    workers: int | None = None,
    compile: bool | None = None,
    capture: bool | None = None,
    sync_bn: bool | None = None,
    eval_every: int | None = None,
    save_every: float | None = None,
    stop_on_collapse: bool | None = None,
    tracker: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = False,
) -> "PretrainResult":
    """Pretrain a backbone without labels, as `avt pretrain` does: the same arguments give the same weights.

    What is left out, None, comes from the recipe, else from the default that `avt pretrain --help` states.

    Ctrl-C, or the interruption of a notebook's cell, finishes the step, saves the state and raises KeyboardInterrupt, and
    `pretrain(resume=...)` goes on from there; a second one raises it at once. In another thread than the main one nothing
    interrupts a run. Runs in several threads wait for each other. Several processes are started by the command line, or by
    torchrun around a program that calls this function.

    Args:
        dataset: training images, NAME or NAME:PATH, as in "folder:photos".
        backbone: network to pretrain, NAME or NAME:VARIANT.
        transform: family of transformations, NAME or NAME+NAME.
        objective: pretraining objective, NAME or NAME+NAME.
        recipe: settings to start from: a name, or a TOML file such as a run's config.toml. Default: the published recipe of
            data set and backbone, else "default".
        options: options of components as KIND.KEY, as in {"backbone.width": 0.25, "schedule.warmup": 0.1}.
        epochs: passes over the images; the schedule is stretched or shrunk.
        max_steps: stop after that many steps; the schedule stays as it is.
        batch_size: images per step.
        lr: peak learning rate of the backbone; the others keep their ratio to it.
        seed: of every random draw.
        limit_train: train on a random subset of that many images, the same in every command and for every seed.
        data_dir: folder of the data sets. Default: $AVT_DATA, else ./data.
        homographies: sample transformations from this bank.
        on_bad_image: replace images that cannot be used by others ("skip"), or stop at the first ("raise").
        max_bad_fraction: stop when more than this fraction of the images is skipped.
        init_from: initial weights: a run, a checkpoint or a file.
        device: where to compute; "auto" takes CUDA, then MPS, then the CPU.
        precision: of the computation; "auto" takes bf16 on a CUDA device that supports it, else fp32.
        workers: processes that decode images which do not fit in memory.
        compile: compile the network.
        capture: take each step of a full batch as one CUDA graph.
        sync_bn: normalise by the statistics of the whole batch, over all processes, instead of each process's own images.
        eval_every: epochs between evaluations on fixed images; 0 for none.
        save_every: minutes between checkpoints, at most 10.
        stop_on_collapse: stop, with the state saved, when an evaluation detects a collapse.
        tracker: experiment trackers that receive the metrics, one or several.
        out: run folder, new. Default: runs/DATE-DATASET-BACKBONE-OBJECTIVE.
        resume: run to go on with, by its folder; "last" is the newest under ./runs.
        progress: show settings, progress and notices on stderr, as the command line does.

    Returns:
        The run folder, its steps and figures; what `avt pretrain --json` prints.

    Raises:
        AvtError: before anything is written, for settings that are not right, or data that are missing.
        RunFailedError: an AvtError, if the run failed; what was learned until then is saved.
        KeyboardInterrupt: if it was interrupted, with the state saved.
    """
    return _pretrain(locals())


def _pretrain(arguments: dict[str, Any]) -> "PretrainResult":
    from avtcli.config.pretrain_config import PretrainConfig
    from avtcli.config.resolution import resolve
    from avtcli.runtime.signals import interrupts
    from avtcli.storage.run_folders import run_to_resume
    from avtcli.training.pretrain import pretrain as train
    from avtcli.training.training_state import resumed_config

    out, recipe, resume = (arguments[name] for name in ("out", "recipe", "resume"))
    given = settings_of(PretrainConfig, arguments, options=arguments["options"])
    with calling(arguments["progress"]) as on_event:
        if resume is None:
            run, config = path_of(out), resolve(given, recipe=None if recipe is None else str(recipe))
        elif out is not None or recipe is not None:
            raise AvtError("resume goes on in the run's own folder with its own settings: leave out `out` and `recipe`.")
        else:
            run = run_to_resume(run_of(resume), given)
            config = resumed_config(run, given, on_event=on_event)
        return train(config, run=run, resume=resume is not None, on_event=on_event, stopping=interrupts)
