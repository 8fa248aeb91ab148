"""`avt pretrain --dry-run`: a few real steps in memory, and what the run will take."""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch

from avtcli.bench.benchmark_timing import synchronise
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.errors import AvtError, RunFailedError
from avtcli.events import OnEvent
from avtcli.runtime.capture import WARM_UP
from avtcli.runtime.devices import memory_errors_explained
from avtcli.runtime.processes import run_in_main
from avtcli.storage.checkpoints import KEPT, load_newest
from avtcli.storage.files import refuse_existing
from avtcli.storage.run_folders import default_folder
from avtcli.training.optimizer import build_optimizer, optimizer_tensors
from avtcli.training.run_log import Tracking, describe_run
from avtcli.training.step import Trainer
from avtcli.training.training_setup import TrainingSetup, build_training_setup
from avtcli.training.training_state import check_resumable

SECONDS: Final = 5.0
"""Time that the measured steps should take, where one step takes no longer."""
MOST_STEPS: Final = 50
LOG_LINE_BYTES: Final = 200


@dataclass(frozen=True)
class DryRun:
    """What a run will take, measured on a few steps.

    Attributes:
        run: its folder.
        recipe: its name or file.
        steps: of the whole run.
        epochs: likewise.
        pairs_per_second: without the first steps, which compile, capture and fill caches.
        seconds: of steps and evaluations, without those that a resumed run has done.
        memory_bytes: peak of the GPU's memory, elsewhere of this process.
        disk_bytes: of the checkpoints that are kept, and the log.
        advice: how to end in about an hour, and whether the run takes more than a day; empty within an hour.
        config: all settings.
    """

    run: str
    recipe: str
    steps: int
    epochs: float
    pairs_per_second: float
    seconds: float
    memory_bytes: int
    disk_bytes: int
    advice: str
    config: dict[str, Any]


def dry_run(config: PretrainConfig, *, run: Path | None, resume: bool, on_event: OnEvent) -> DryRun:
    """Check a run as `pretrain` would, with the same arguments, and take a few of its steps; nothing is written.

    Raises:
        AvtError: for the first thing that is not right.
        RunFailedError: if a step does not fit in memory or all are not finite, or the disk is too small.
    """
    if run is not None and not resume:
        refuse_existing(run)
    setup = build_training_setup(config, run=run, resume=resume, on_event=on_event)
    on_event(describe_run(setup))
    Tracking(setup.config.trackers, setup.group, on_event=on_event)  # whose libraries may be missing
    done = run_in_main(setup.group, lambda: _step_reached(setup, run)) if setup.continues and run is not None else 0
    with memory_errors_explained(), _random_state_kept(setup.accelerator.device):
        speed, checkpoint_bytes = _measure(setup, on_event=on_event)
    settings, length = setup.config, setup.length
    folder = run or default_folder(settings.dataset.name, settings.backbone.name, settings.objective.name)
    log_bytes = LOG_LINE_BYTES * length.steps
    _check_disk(folder, (KEPT + 1) * checkpoint_bytes + log_bytes)  # an older one is deleted after the new one is written
    return DryRun(
        run=str(folder),
        recipe=settings.recipe,
        steps=length.steps,
        epochs=round(length.steps / length.steps_per_epoch, 4),
        pairs_per_second=speed,
        seconds=length.seconds(speed, after=done),
        memory_bytes=_peak_bytes(setup.accelerator.device),
        disk_bytes=KEPT * checkpoint_bytes + log_bytes,
        advice="" if resume else length.advice(speed),
        config=settings.model_dump(mode="json"),
    )


def _step_reached(setup: TrainingSetup, run: Path) -> int:
    about = load_newest(run / "checkpoints").about
    check_resumable(about, setup, run=run)
    return int(about["step"])


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _measure(setup: TrainingSetup, *, on_event: OnEvent) -> tuple[float, int]:
    """Return pairs per second, and the bytes of a checkpoint.

    The number of steps is the same in all processes.
    """
    device = setup.accelerator.device
    trainer = Trainer(setup, build_optimizer(setup.config, setup.net), on_event=on_event)
    batches, steps = setup.build_loader(setup.open_images()).read(0, sys.maxsize), count()

    def take(number: int) -> tuple[int, float]:
        began, pairs, skipped = time.perf_counter(), 0, list[torch.Tensor]()
        for step in (next(steps) for _ in range(number)):
            batch = next(batches)
            pairs += batch.count
            skipped.append(trainer.step(step % setup.total_steps, batch).skipped)
        if torch.stack(skipped).all():  # this waits for the device
            raise RunFailedError("The loss or gradient of the first steps is not finite. Try a lower learning rate, --lr.")
        return pairs, time.perf_counter() - began

    take(1 + WARM_UP if device.type == "cuda" else 1)
    synchronise(device)
    pairs, seconds = take(1)
    more = run_in_main(setup.group, lambda: min(MOST_STEPS, int(SECONDS / seconds)))
    more_pairs, more_seconds = take(more) if more else (0, 0.0)
    tensors = [*setup.net.state_dict().values(), *optimizer_tensors(trainer.optimizer)[0].values()]
    return (pairs + more_pairs) / (seconds + more_seconds), sum(tensor.nbytes for tensor in tensors)


def _check_disk(folder: Path, needed: int) -> None:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise AvtError(f"The run needs {needed / 1e6:.0f} MB in {place}, {free / 1e6:.0f} MB are free: give another --out.")


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
