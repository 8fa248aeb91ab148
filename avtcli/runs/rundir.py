"""Run folders: made once, locked while in use, never overwritten."""

import json
import os
import platform
import socket
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from avtcli import registry
from avtcli.errors import AvtError
from avtcli.runs.files import disk_errors_explained, refuse_existing, replace_file, to_json

RUNS = Path("runs")


def default_folder(dataset: str, *others: str) -> Path:
    """runs/DATE-DATASET-OTHERS, with a number behind it where that is taken."""
    words = [spec.replace(":", "-").replace("/", "-").strip("-") for spec in (dataset.split(":")[0], *others)]
    base = RUNS / "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *words])
    numbered = (base if n == 1 else base.with_name(f"{base.name}-{n}") for n in range(1, 1000))
    return next(path for path in numbered if not path.exists())


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return (path / "config.toml").is_file() and (path / "checkpoints").is_dir()


def newest_run(root: Path = RUNS) -> Path:
    """The run under `root` that was started last.

    Raises:
        AvtError: if there is none.
    """
    found = [path for path in root.iterdir() if is_run(path)] if root.is_dir() else []
    if not found:
        raise AvtError(f"There is no run under {root}. Name a run folder, or make one with `avt pretrain`.")
    return max(found, key=lambda path: ((path / "config.toml").stat().st_mtime_ns, path.name))


def create_run(path: Path, config_toml: str, env: dict[str, Any]) -> None:
    """Make a run folder.

    Raises:
        AvtError: if the folder exists.
        RunFailedError: if it cannot be written.
    """
    refuse_existing(path)
    with disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:  # another process was faster
            refuse_existing(path)
        (path / "checkpoints").mkdir()
        replace_file(path / "env.json", to_json(env))
        replace_file(path / "config.toml", config_toml.encode())


def lock_run(path: Path) -> FileLock:
    """Take the run's lock; the kernel gives it back when the process ends, however it ends.

    Raises:
        AvtError: if another process holds it.
    """
    lock = FileLock(path / "lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        holder = read_env(path)
        raise AvtError(
            f"{path} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}. "
            "Wait for it, or choose another --out."
        ) from None
    return lock


def read_env(path: Path) -> dict[str, Any]:
    """The run's env.json, or nothing where it does not read."""
    try:
        content = json.loads((path / "env.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def describe_environment(
    *, device: str, processes: int, plugins: list[tuple[str, str]], data_fingerprint: str
) -> dict[str, Any]:
    """What a run's numbers may depend on beside its settings.

    Args:
        device: where the arithmetic happens, in words.
        processes: how many share it.
        plugins: (kind, name) of those in use.
        data_fingerprint: of the data set.
    """
    packages = ("avtcli", "torch", "torchvision", "timm", "accelerate", "safetensors", "numpy")
    infos = [registry.info(kind, name) for kind, name in plugins]
    return {
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in packages},
        "device": device,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "plugins": {f"{i.kind}.{i.name}": i.origin for i in infos},
        "data_fingerprint": data_fingerprint,
    }


def environment_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two environments in a way that can change bits: one line each."""
    pairs = [(key, before.get(key), now[key]) for key in ("device", "processes", "threads", "cpu_capability")]
    old = before.get("versions", {})
    pairs += [(f"{name} version", old.get(name), new) for name, new in now["versions"].items() if name in ("torch", "avtcli")]
    return [f"{what} was {was}, is {became}" for what, was, became in pairs if was != became]


class MetricsLog:
    """metrics.jsonl: whole lines only, one a step and one an evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Add lines with one write."""
        blob = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with disk_errors_explained(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(descriptor, blob)
            finally:
                os.close(descriptor)

    def read(self) -> list[dict[str, Any]]:
        """All whole lines."""
        if not self.path.exists():
            return []
        return [
            json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
        ]

    def cut_after(self, step: int) -> None:
        """Forget the lines beyond a step, and a torn one: they will be written again."""
        kept = [line for line in self.read() if line["step"] <= step]
        replace_file(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
