"""`avt pretrain`."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from avtcli.cli.console import reporting, say, say_json
from avtcli.cli.options import (
    Backbone,
    DataDir,
    Dataset,
    Device,
    Json,
    LimitTrain,
    Objective,
    Options,
    Precision,
    Seed,
    Transform,
    Workers,
    workers_from_text,
)

if TYPE_CHECKING:
    from avtcli.config.pretrain_config import PretrainConfig


class OptionalValue(TyperCommand):
    """Lets `--resume` stand alone: what follows is its value unless it is an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `last` behind a bare `--resume`."""
        out: list[str] = []
        for i, arg in enumerate(args):
            out.append(arg)
            if arg == "--resume" and (i + 1 == len(args) or args[i + 1].startswith("-")):
                out.append("last")
        return super().parse_args(ctx, out)


def pretrain(
    dataset: Dataset = None,
    backbone: Backbone = None,
    transform: Transform = None,
    objective: Objective = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="Where the settings come from. Left out: the published recipe of data set and backbone, else our own.",
            rich_help_panel="Model",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the images; stretches or shrinks the schedule.", rich_help_panel="Optimisation"),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many steps; leaves the schedule alone.", rich_help_panel="Optimisation"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images a step, over all processes.", rich_help_panel="Optimisation")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(min=0.0, help="The backbone's peak rate; the others keep their ratio.", rich_help_panel="Optimisation"),
    ] = None,
    limit_train: LimitTrain = None,
    seed: Seed = None,
    data_dir: DataDir = None,
    homographies: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw from this bank; see `avt gen-homographies`.", rich_help_panel="Data"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The run folder. Left out: runs/DATE-DATASET-BACKBONE-OBJECTIVE.",
            rich_help_panel="Output",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[RUN|last]",
            help="Go on with a run as if it had never stopped; alone or with `last`, the newest.",
            rich_help_panel="Output",
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN|FILE",
            help="Begin with the weights of a run, an export or a safetensors file, as far as names and shapes match.",
            rich_help_panel="Model",
        ),
    ] = None,
    options: Options = None,
    device: Device = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes on this machine that share each batch.", rich_help_panel="Hardware")
    ] = 1,
    workers: Workers = None,
    precision: Precision = None,
    compile_step: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the training step. Left out: as measured for the device.",
            rich_help_panel="Hardware",
        ),
    ] = None,
    save_every: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="Minutes between checkpoints, at most 10.", rich_help_panel="Output"),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            metavar="EPOCHS",
            min=0,
            help="Epochs between evaluations on a few fixed images: MACE, k-NN, RankMe, spread. 0 for none; left out, 10.",
            rich_help_panel="Output",
        ),
    ] = None,
    stop_on_collapse: Annotated[
        bool | None,
        typer.Option(
            "--stop-on-collapse/--no-stop-on-collapse",
            help="Whether to stop, with the state saved, when an evaluation shows a collapse.",
            rich_help_panel="Output",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything and say what would run; write nothing.", rich_help_panel="Output"),
    ] = False,
    as_json: Json = False,
) -> None:
    """Pretrain a backbone without labels.

    A transformation is drawn for each image, both views go through one encoder, and a decoder predicts the transformation
    from the two codes.

    Ctrl-C finishes the step, saves, and prints the command that goes on.

    Example: `avt pretrain --dataset cifar10 --backbone nin`
    """
    from avtcli.config.resolution import merge, options_from_texts, resolve
    from avtcli.errors import AvtError
    from avtcli.storage.run_folders import default_folder

    named = {"dataset": dataset, "backbone": backbone, "transform": transform, "objective": objective}
    settings: dict[str, Any] = {
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "lr": lr,
        "limit_train": limit_train,
        "seed": seed,
        "data_dir": data_dir,
        "init_from": None if init_from is None else str(init_from),
        "homographies": None if homographies is None else str(homographies),
        "device": device,
        "workers": workers_from_text(workers),
        "precision": precision,
        "compile": compile_step,
        "save_every": save_every,
        "eval_every": eval_every,
        "stop_on_collapse": stop_on_collapse,
    }
    settings |= {kind: {"name": name} for kind, name in named.items() if name is not None}
    settings = merge(settings, options_from_texts(options or []))
    if resume is not None:
        if out is not None or recipe is not None:
            raise AvtError("--resume goes on in the run's own folder with its own settings: leave out --out and --recipe.")
        run, config = _resumed(resume, settings)
    else:
        config = resolve(settings, recipe=recipe)
        run = out or default_folder(config.dataset.name, config.backbone.name, config.objective.name)
    if processes > 1 and "RANK" not in os.environ:
        place = ["--resume", str(run)] if resume is not None else ["--out", str(run)]
        raise typer.Exit(_launch(processes, [*_without_place(sys.argv[1:]), *place]))
    with reporting() as on_event:
        if dry_run:
            from avtcli.training.training_setup import build_training_setup

            setup = build_training_setup(config, on_event=on_event)
        else:
            from avtcli.training.pretrain import pretrain as train

            result = train(config, run=run, resume=resume is not None, on_event=on_event)
    if int(os.environ.get("RANK", "0")) > 0:
        return
    if dry_run:
        about = {"run": str(run), "steps": setup.total_steps, "recipe": config.recipe, "config": config.model_dump(mode="json")}
        if as_json:
            say_json(about)
        else:
            say(f"all is well: {setup.total_steps} steps into {run}")
        return
    if as_json:
        say_json(asdict(result))
        return
    say(f"run      {result.run}", f"steps    {result.steps} ({result.epochs:g} epochs, {result.seconds:.0f} s)")
    if result.loss is not None:
        say(f"loss     {result.loss:.4f}")
    if result.mace_px is not None:
        say(f"mace_px  {result.mace_px:.2f}  (corner error on held-out images)")
    say(f"next     avt probe {result.run}", f"         avt export {result.run}")


def _resumed(name: str, settings: dict[str, Any]) -> tuple[Path, "PretrainConfig"]:
    """The run to go on with and its settings; only what cannot change the numbers may be given anew."""
    from avtcli import recipes
    from avtcli.config.pretrain_config import PretrainConfig
    from avtcli.config.resolution import merge, validate
    from avtcli.errors import AvtError
    from avtcli.storage.run_folders import is_run, newest_run

    run = newest_run() if name == "last" else Path(name)
    if not is_run(run):
        raise AvtError(f"There is no run to resume in {run}: it has no config.toml and checkpoints.")
    may_change = (
        *("max_steps", "device", "workers", "precision", "compile", "save_every", "data_dir"),
        *("eval_every", "stop_on_collapse"),
    )
    fixed = [key for key, value in settings.items() if value is not None and key not in may_change]
    if fixed:
        raise AvtError(
            f"--resume goes on with the run's own settings: leave out {', '.join(fixed)}, or start a new run. "
            f"What may be given anew: {', '.join(may_change)}."
        )
    stored = recipes.load(str(run / "config.toml"), kind="pretrain")
    return run, validate(PretrainConfig, merge(stored, settings), where=f"{run}/config.toml")


def _without_place(args: list[str]) -> list[str]:
    """The command line without --out and --resume, which the launching process has resolved."""
    out: list[str] = []
    skip = False
    for i, arg in enumerate(args):
        if skip:
            skip = False
        elif arg in ("--out", "--resume"):
            skip = i + 1 < len(args) and not args[i + 1].startswith("-")
        elif not arg.startswith(("--out=", "--resume=")):
            out.append(arg)
    return out


def _launch(processes: int, args: list[str]) -> int:
    """Start the same command in several processes of this machine; return the exit code."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id="avt",
        max_restarts=0,  # a stop after a signal ends with its code, and must not be taken for a failure and started again
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        shutdown_timeout=120,  # longer than any save
    )
    try:
        elastic_launch(config, sys.executable)("-m", "avtcli", *args)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return 128 - code if code < 0 else code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
