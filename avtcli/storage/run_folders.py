"""Run folders: complete when they appear, locked while in use, never overwritten."""

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from avtcli.errors import AvtError
from avtcli.input_files import TEXT_BYTES, parse_json_object, read_bytes
from avtcli.storage.files import disk_errors_explained, has_process_ended, new_path, to_json, write_file
from avtcli.storage.run_data import write_listings

RUNS = Path("runs")
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
    found = list_runs(root)
    if not found:
        raise AvtError(f"There is no run under {root}. Name a run folder, or make one with `avt pretrain`.")
    return found[0]


def list_runs(root: Path = RUNS) -> list[Path]:
    """List the runs under `root` that have a checkpoint, those started or resumed last first."""
    found = [path for path in root.iterdir() if any(path.glob("checkpoints/step-*/manifest.json"))] if root.is_dir() else []
    return sorted(found, key=lambda path: (_started(path), path.name), reverse=True)


def _started(run: Path) -> int:
    config = run / "config.toml"
    return config.stat().st_mtime_ns if config.exists() else 0


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


def lock_run(path: Path) -> FileLock:
    """Acquire the run's lock, else raise an `AvtError`; the kernel releases it when the process ends."""
    lock = FileLock(path / "lock")
    with disk_errors_explained(path / "lock"):
        env = read_env(path)
        killed = env.get("host") == socket.gethostname() and type(env.get("pid")) is int and has_process_ended(env["pid"])
        try:
            lock.acquire(timeout=READERS_SECONDS if killed else 0)
        except Timeout:
            env = read_env(path)
            holder = f"process {env.get('pid', '?')} on {env.get('host', '?')}"
            raise AvtError(f"{path} is in use by {holder}. Wait for it, or choose another --out.") from None
    write_env(path, {**read_env(path), "pid": os.getpid(), "host": socket.gethostname()})
    return lock


def read_env(path: Path) -> dict[str, Any]:
    """Read the run's env.json; empty if it is missing or damaged."""
    try:
        return parse_json_object(read_bytes(path / "env.json", limit=TEXT_BYTES), path / "env.json")
    except AvtError:
        return {}


def write_env(path: Path, env: dict[str, Any]) -> None:
    """Write the run's env.json."""
    write_file(path / "env.json", to_json(env), replace=True)
