"""Run folders: complete when they appear, locked while in use, never overwritten."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from avtcli.config.components import flags_of
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.errors import AvtError, InterruptedRunError, one_line
from avtcli.events import Notice, OnEvent
from avtcli.input_files import TEXT_BYTES, parse_json_object, read_bytes
from avtcli.storage.files import disk_errors_explained, has_process_ended, new_path, to_json, why_unwritable, write_file
from avtcli.storage.run_data import write_listings

RUNS = Path("runs")
LOOK_SECONDS = 1.0  # longer than `is_running` holds the lock
LAST = "last"
"""Stands for the newest run where a run is asked for."""
READERS_SECONDS = 20.0  # in which the readers of a killed run, which hold its lock too, notice that it ended


def default_folder(dataset: str, *others: str) -> Path:
    """Return a free path, runs/DATE-DATASET-OTHERS, numbered where that is taken."""
    words = [spec.replace(":", "-").replace("/", "-").strip("-") for spec in (dataset.split(":")[0], *others)]
    base = RUNS / "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *words])
    numbered = (base if n == 1 else base.with_name(f"{base.name}-{n}") for n in range(1, 1000))
    return next(path for path in numbered if not path.exists())


def is_run(path: Path) -> bool:
    """Whether a folder has checkpoints, or had none yet when its run was killed."""
    return os.path.isdir(path / "checkpoints")  # false for a name that no file has


def newest_run(root: Path = RUNS) -> Path:
    """Return the run under `root` that was started or resumed last, of those with a checkpoint, else raise an `AvtError`."""
    found = runs_with_checkpoints(root)
    if not found:
        raise AvtError(f"There is no run under {root}. Name a run folder, or make one with `avt pretrain`.")
    return found[0]


def runs_with_checkpoints(root: Path = RUNS) -> list[Path]:
    """List the runs under `root` that have a checkpoint, those started or resumed last first."""
    found = [path for path in root.iterdir() if any(path.glob("checkpoints/step-*/manifest.json"))] if root.is_dir() else []
    return sorted(found, key=lambda path: (started(path), path.name), reverse=True)


def names_newest(name: str | Path | None) -> bool:
    """Whether what is given for a run, none or `last`, means the newest one under ./runs."""
    return name is None or str(name) == LAST


def find_run(name: str | Path | None) -> Path:
    """Return the path of a run by its folder, or by its name where it is under ./runs; none or `last` is the newest one there.

    A run or file of that name in the current folder comes first.

    Raises:
        AvtError: if the newest run is asked for, and there is none.
    """
    if names_newest(name):
        return newest_run()
    assert name is not None
    path = Path(name)
    is_name = len(path.parts) == 1 and not is_run(path) and not os.path.isfile(path)
    return RUNS / path if is_name and is_run(RUNS / path) else path


def run_to_resume(name: str | Path | None, given: Mapping[str, Any]) -> Path:
    """Find a run, see `find_run`, to go on with other settings by field; an `AvtError` refuses those that are fixed."""
    run = find_run(name)
    if not is_run(run):
        raise AvtError(f"There is no run to resume in {run}: no folder `checkpoints` is there. `avt runs` lists runs.")
    flags = flags_of(PretrainConfig)
    kept = [key for key, value in given.items() if value is not None and not (key in flags and flags[key].on_resume)]
    fixed = [flags[key].option(key) if key in flags else f"--{key}" for key in kept]
    if fixed:
        raise AvtError(f"--resume continues with the run's own settings: leave out {', '.join(fixed)}, or start a new run.")
    return run


def started(run: Path) -> float:
    """Return when a run was started or resumed last, in seconds since 1970; 0 if it has no settings."""
    config = run / "config.toml"
    return config.stat().st_mtime if config.exists() else 0.0


def has_lost_checkpoints(run: Path) -> bool:
    """Whether there are checkpoints, and none whose files have the sizes that its manifest states; no hash is computed."""
    found = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    return bool(found) and not any(_is_of_size(path) for path in found if ".damaged" not in path.name)


def _is_of_size(checkpoint: Path) -> bool:
    path = checkpoint / "manifest.json"
    try:
        manifest = parse_json_object(read_bytes(path, limit=TEXT_BYTES), path)
        return bool(manifest) and all(os.stat(checkpoint / name).st_size == manifest[name]["size"] for name in manifest)
    except (AvtError, OSError, LookupError, TypeError, ValueError):
        return False


def folder_for_results(run: Path | None, *, other: str = "", on_event: OnEvent) -> Path | None:
    """Return a run folder for results; none, with a notice, where they are of something `other`, or it cannot be written."""
    cause = None if run is None else other or why_unwritable(run)
    if cause is None:
        return run
    on_event(Notice(f"not saved in {run}: {cause}. Use --out to save"))
    return None


def create_run(path: Path, config_toml: str, env: dict[str, Any], *, listings: Mapping[str, bytes] | None = None) -> None:
    """Create a run folder with settings, environment and the lists of its images, all at once.

    Raises:
        AvtError: if the path exists.
        RunFailedError: if the disk fails.
    """
    with new_path(path) as folder:
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "env.json").write_bytes(to_json(env))
        (folder / "config.toml").write_bytes(config_toml.encode())
        write_listings(folder, listings or {})


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the run's lock, see `lock_run`."""
    lock = lock_run(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the kernel releases it when the process ends
            lock.release()


@contextlib.contextmanager
def outcome_recorded(path: Path, *, steps: int) -> Iterator[None]:
    """Keep in env.json the number of steps of the run that begins or goes on here, and the error that ends it."""
    write_env(path, {**read_env(path), "steps": steps, "failure": None})
    try:
        yield
    except InterruptedRunError:
        raise
    except Exception as error:
        with contextlib.suppress(AvtError):  # the disk may be what failed
            write_env(path, {**read_env(path), "failure": one_line(error)})
        raise


def lock_run(path: Path) -> FileLock:
    """Acquire the run's lock, else raise an `AvtError`; env.json keeps the holder.

    The kernel releases it when the process ends.
    """
    lock = FileLock(path / "lock")
    with disk_errors_explained(path / "lock"):
        try:
            lock.acquire(timeout=READERS_SECONDS if _holder_ended(read_env(path)) else LOOK_SECONDS)
        except Timeout:
            env = read_env(path)
            holder = f"process {env.get('pid', '?')} on {env.get('host', '?')}"
            raise AvtError(f"{path} is in use by {holder}. Wait for it, or choose another --out.") from None
    write_env(path, {**read_env(path), "pid": os.getpid(), "host": socket.gethostname()})
    return lock


def _holder_ended(env: Mapping[str, Any]) -> bool:
    return env.get("host") == socket.gethostname() and type(env.get("pid")) is int and has_process_ended(env["pid"])


def is_running(path: Path, env: Mapping[str, Any]) -> bool:
    """Whether a living process holds the run's lock; `env` is the run's env.json."""
    if _holder_ended(env):
        return False
    try:
        with open(path / "lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two that look do not see each other
    except BlockingIOError:
        return True
    except OSError:  # as where there is none
        return False
    return False


def read_env(path: Path) -> dict[str, Any]:
    """Read the run's env.json; empty if it is missing or damaged."""
    try:
        return parse_json_object(read_bytes(path / "env.json", limit=TEXT_BYTES), path / "env.json")
    except AvtError:
        return {}


def write_env(path: Path, env: dict[str, Any]) -> None:
    """Write the run's env.json."""
    write_file(path / "env.json", to_json(env), replace=True)
