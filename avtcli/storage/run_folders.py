"""Run folders: created once, locked while in use, never overwritten."""

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from avtcli.errors import AvtError
from avtcli.input_files import TEXT_BYTES, parse_json_object, read_bytes
from avtcli.storage.files import disk_errors_explained, refuse_existing, replace_file, to_json

RUNS = Path("runs")


def default_folder(dataset: str, *others: str) -> Path:
    """Return a free path, runs/DATE-DATASET-OTHERS, numbered where that is taken."""
    words = [spec.replace(":", "-").replace("/", "-").strip("-") for spec in (dataset.split(":")[0], *others)]
    base = RUNS / "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *words])
    numbered = (base if n == 1 else base.with_name(f"{base.name}-{n}") for n in range(1, 1000))
    return next(path for path in numbered if not path.exists())


def is_run(path: Path) -> bool:
    """Whether a folder has a run's config.toml and checkpoints."""
    return os.path.isfile(path / "config.toml") and os.path.isdir(path / "checkpoints")  # false for a name that no file has


def newest_run(root: Path = RUNS) -> Path:
    """Return the run under `root` that was started last, else raise an `AvtError`."""
    found = [path for path in root.iterdir() if is_run(path)] if root.is_dir() else []
    if not found:
        raise AvtError(f"There is no run under {root}. Name a run folder, or make one with `avt pretrain`.")
    return max(found, key=lambda path: ((path / "config.toml").stat().st_mtime_ns, path.name))


def create_run(path: Path, config_toml: str, env: dict[str, Any]) -> None:
    """Create a run folder with settings and environment; an `AvtError` refuses a path that exists."""
    refuse_existing(path)
    with disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:  # created by another process meanwhile
            refuse_existing(path)
        (path / "checkpoints").mkdir()
        replace_file(path / "env.json", to_json(env))
        replace_file(path / "config.toml", config_toml.encode())


def lock_run(path: Path) -> FileLock:
    """Acquire the run's lock, else raise an `AvtError`; the kernel releases it when the process ends."""
    lock = FileLock(path / "lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        env = read_env(path)
        holder = f"process {env.get('pid', '?')} on {env.get('host', '?')}"
        raise AvtError(f"{path} is in use by {holder}. Wait for it, or choose another --out.") from None
    return lock


def read_env(path: Path) -> dict[str, Any]:
    """Read the run's env.json; empty if it is missing or damaged."""
    try:
        return parse_json_object(read_bytes(path / "env.json", limit=TEXT_BYTES), path / "env.json")
    except AvtError:
        return {}
