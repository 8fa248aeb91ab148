"""`avt pretrain`."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from avtcli import registry
from avtcli.cli.completion import complete_recipe, complete_run
from avtcli.cli.console import reporting, say, say_facts, say_json, say_next
from avtcli.cli.launch import start_processes
from avtcli.cli.options import Json, component_options, option
from avtcli.cli.settings_options import settings_options
from avtcli.config.components import component_kinds
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import merge, options_from_texts, resolve
from avtcli.config.run_length import describe_seconds
from avtcli.config.value_text import counted
from avtcli.errors import AvtError
from avtcli.runtime.launcher import read_launch
from avtcli.storage.files import refuse_existing
from avtcli.storage.run_folders import default_folder, is_run, run_to_resume

KINDS = component_kinds(PretrainConfig)
_FOLDER = "Pretrain on the images in this folder, as `--dataset folder:DIR`. Default: those of --dataset."
_RECIPE = "Settings to start from. Default: the published recipe of data set and backbone (imagenet: alexnet), else `default`."
_LR = "Peak learning rate of the backbone; the others keep their ratio to it. Default: the recipe's."
_MAX_RESTARTS = "Times to go on from the last checkpoint by itself, where one of --processes was killed."
_OUT = "Run folder. Default: runs/DATE-DATASET-BACKBONE-OBJECTIVE."
_RESUME = "Continue a run; `last` is the newest under ./runs. Default: a new run."
_DRY_RUN = (
    "Check everything, take a few steps in memory, print the time, memory and disk space of the run. Nothing is written but a "
    "data set that must be downloaded."
)


@settings_options(PretrainConfig)
def pretrain(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help=_FOLDER)] = None,
    *,
    recipe: Annotated[
        str | None, option(_RECIPE, "NAME|FILE.toml", panel="Model", autocompletion=complete_recipe("pretrain"))
    ] = None,
    overrides: Annotated[list[str] | None, component_options(*KINDS)] = None,
    lr: Annotated[float | None, option(_LR, "X", panel="Optimisation", min=0)] = None,
    processes: Annotated[int, option("Processes that share each batch.", "N", panel="Hardware", min=1)] = 1,
    max_restarts: Annotated[int, option(_MAX_RESTARTS, "N", panel="Hardware", min=0)] = 0,
    out: Annotated[Path | None, option(_OUT, "DIR", panel="Output")] = None,
    resume: Annotated[str | None, option(_RESUME, "RUN|last", panel="Output", autocompletion=complete_run)] = None,
    dry_run: Annotated[bool, option(_DRY_RUN, flag="--dry-run", panel="Output")] = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Pretrain a backbone without labels.

    One encoder sees an image and its random transformation, and a decoder predicts the transformation from the two codes.
    Settings that are not given come from the recipe, else from the defaults below. Ctrl-C finishes the step, saves, and
    prints the command that continues the run.

    Example: `avt pretrain --dataset cifar10 --backbone nin`
    """
    if folder is not None and "dataset" in settings:
        raise AvtError(f"Both the folder {folder} and --dataset were given: give one of them.")
    if folder is not None and not folder.is_dir() and registry.split_name(str(folder))[0] in registry.names("dataset"):
        raise AvtError(f"There is no folder {folder}. A data set by name: `--dataset {shlex.quote(str(folder))}`.")
    if folder is not None:
        settings["dataset"] = {"name": f"folder:{folder}"}
    given = merge({**settings, "lr": lr}, options_from_texts(overrides or [], kinds=KINDS))
    run, config = out, None
    if resume is None:
        config = resolve(given, recipe=recipe)
    elif out is not None or recipe is not None:
        raise AvtError("--resume continues in the run's own folder with its own settings: leave out --out and --recipe.")
    else:
        run = run_to_resume(resume, given)
    if max_restarts and processes == 1:
        raise AvtError("--max-restarts starts what --processes starts, again: give --processes N too.")
    # the last of two equal options counts: all processes take the run that was found or named here
    found = [] if resume is None else ["--resume", str(run)]
    if max_restarts and config is not None:
        run = out or default_folder(config.dataset.name, config.backbone.name, config.objective.name)
        refuse_existing(run)
        found = ["--out", str(run)]
    going_on = ["pretrain", "--resume", "RUN" if run is None else str(run.absolute()), "--processes", str(processes)]

    def again() -> list[str]:
        if resume is not None or run is None or not is_run(run):
            return []  # the same arguments: nothing was saved yet, or they go on from what was
        return [*going_on, "--max-restarts", str(max_restarts), *["--json"] * as_json]

    way_out = f"What was saved is intact. Go on with:\n  avt {shlex.join(going_on)}"
    start_processes(processes, *found, go_on=way_out, max_restarts=max_restarts, again=again)
    with reporting() as on_event:
        if config is None:
            from avtcli.training.training_state import resumed_config

            assert run is not None
            config = resumed_config(run, given, on_event=on_event)
        if dry_run:
            from avtcli.bench.dry_run import dry_run as try_steps

            tried = try_steps(config, run=run, resume=resume is not None, on_event=on_event)
        else:
            from avtcli.training.pretrain import pretrain as train

            result = train(config, run=run, resume=resume is not None, on_event=on_event)
    if read_launch().rank > 0:
        return
    if as_json:
        say_json(tried if dry_run else result)
    elif dry_run:
        say(f"Configuration OK: {tried.steps} steps into {tried.run}")
        whose = " of each process" if read_launch().world > 1 else ""
        say_facts(
            {
                "time": f"{describe_seconds(tried.seconds)}, at {tried.pairs_per_second:.0f} pairs/s",
                "hint": tried.advice or None,
                "memory": f"{tried.memory_bytes / 1e6:.1f} MB at the peak{whose}",
                "disk": f"{tried.disk_bytes / 1e6:.1f} MB",
            }
        )
    else:
        skipped = [(result.skipped_steps, "steps that were not finite"), (result.skipped_images, "images, see bad_images.csv")]
        facts = {"run": result.run, "steps": f"{result.steps} ({counted(result.epochs, 'epoch')}, {result.seconds:.0f} s)"}
        if result.loss is not None:
            facts["loss"] = f"{result.loss:.4f}"
        if result.mace_px is not None:
            guessing, constant = "", result.constant_mace_px
            if constant is not None:
                guessing = f"; guessing: {constant:.2f}{', which more epochs may beat' if result.mace_px >= constant else ''}"
            facts["mace_px"] = f"{result.mace_px:.2f}  (mean corner error on {result.evaluated_on}{guessing})"
        if any(count for count, _ in skipped):
            facts["skipped"] = ", ".join(f"{count} {what}" for count, what in skipped if count)
        say_facts(facts)
        measure = "probe" if result.labelled else "evaluate"
        say_next(("avt", measure, result.run), ("avt", "export", result.run))
