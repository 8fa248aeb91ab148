"""Description of the environment that a run's results may depend on."""

import os
import platform
import socket
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from avtcli import registry


def describe_environment(
    *, device: str, processes: int, plugins: list[tuple[str, str]], data_fingerprint: str
) -> dict[str, Any]:
    """Describe machine, versions and the plugins in use, (kind, name) each."""
    packages = ("avtcli", "torch", "torchvision", "timm", "accelerate", "safetensors", "numpy", "pillow")
    infos = [registry.info(kind, name) for kind, name in plugins]
    return {
        "command": [word.encode("utf-8", "backslashreplace").decode() for word in sys.argv],
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
    """List the differences that can change results bit by bit, one line each."""
    pairs = [(key, before.get(key), now[key]) for key in ("device", "processes", "threads", "cpu_capability")]
    for table, what in (("versions", "version"), ("plugins", "plugin")):
        old, new = before.get(table, {}), now[table]
        pairs += [(f"{name} {what}", old.get(name), new.get(name)) for name in {**old, **new}]
    return [f"{what} was {was}, is {became}" for what, was, became in pairs if was != became]
