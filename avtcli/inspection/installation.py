"""A short check of the installation and the machine: what is in order, what to know, what is wrong, and the way out.

No package that may be what is wrong is imported at the top.
"""

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from avtcli.config.resolution import data_folder
from avtcli.errors import one_line
from avtcli.inspection.finding import Finding
from avtcli.runtime.launcher import ACCELERATE_VARIABLES, VARIABLES
from avtcli.storage.run_folders import RUNS

NEWEST: Final = {"python": "3.13", "torch": "2.14", "torchvision": "0.29", "timm": "1.0.31", "accelerate": "1.15"}
"""The newest versions that avt is tested with; the oldest are those that its distribution requires."""

GIVES: Final = {
    "report": "pictures: `avt report`, and the calibration of `avt evaluate`",
    "parquet": "`avt embed --out FILE.parquet`",
    "onnx": "`avt export --format onnx`",
    "svhn": "`--dataset svhn`",
    "hf": "`--dataset hf:NAME`",
}
"""What an extra is for."""

IMPORTED: Final = {
    "numpy": "numpy",
    "torch": "torch, see https://pytorch.org/get-started",
    "torchvision": "the release of torchvision that belongs to this torch, from the same index",
    "accelerate": "accelerate",
    "safetensors": "safetensors",
    "timm": "timm",
}
"""What all else needs, in the order of their own needs, and what to install where it cannot be imported."""

LITTLE_DISK = 5e9


def check_installation(data_dir: str | None = None) -> Iterator[Finding]:
    """Check versions, imports, devices, memory, disks, data, plugins, extras and environment variables; write nothing."""
    yield from _versions()
    broken = _broken_import()
    if broken is not None:
        yield broken
    yield _folder("runs", RUNS.absolute())
    yield _folder("data", data_folder(data_dir))
    if broken is None:
        from avtcli.inspection.machine import check_machine

        yield from check_machine(data_folder(data_dir))
    yield from _extras()
    yield from _variables()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


def _requirements() -> dict[str, tuple[str, str]]:
    """The extra that needs each distribution, or an empty text, and the oldest version."""
    found = {"python": ("", importlib.metadata.metadata("avtcli")["Requires-Python"].removeprefix(">="))}
    for text in importlib.metadata.requires("avtcli") or ():
        name, oldest, extra = re.findall(r"^([\w.-]+)>=([\w.]+)(?:.*extra == ['\"]([\w-]+))?", text)[0]
        if extra != "dev":
            found[name] = (extra, oldest)
    return found


def _versions() -> Iterator[Finding]:
    for name, newest in NEWEST.items():
        oldest, version = _requirements()[name][1], _version(name)
        if version is None:
            continue  # it cannot be imported either
        own, tested = _numbers(version), f"tested with {oldest} to {newest}"
        if own < _numbers(oldest):
            update = "install a newer Python" if name == "python" else f"`pip install -U '{name}>={oldest}'`"
            yield Finding(name, "problem", f"{version} is too old, {tested}", update)
        elif own[: len(_numbers(newest))] > _numbers(newest):
            yield Finding(name, "note", f"{version}, {tested}", "if something fails, take a tested version")
        else:
            yield Finding(name, "ok", version)


def _version(name: str) -> str | None:
    try:
        return platform.python_version() if name == "python" else importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _broken_import() -> Finding | None:
    """The first package that cannot be imported; those that need it cannot be either."""
    for name, cure in IMPORTED.items():
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # as a library that is missing, or operators of another torch
            found = f"cannot be imported ({one_line(error)}), so devices, data sets and plugins were not checked"
            return Finding(f"import {name}", "problem", found, f"install {cure}")
    return None


def _folder(what: str, path: Path) -> Finding:
    """Whether a folder, or the nearest one above it that exists, has room and can be written."""
    there = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    made = "" if there == path else ", made when it is needed"
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        option = "--out DIR" if what == "runs" else "--data-dir DIR, or set AVT_DATA,"
        return Finding(what, "problem", f"{path}: {there} cannot be written", f"change its permissions, or give {option}")
    free = shutil.disk_usage(there).free
    found = f"{path}{made}, {free / 1e9:.1f} GB free"
    return Finding(what, "note", found, "free some space") if free < LITTLE_DISK else Finding(what, "ok", found)


def _extras() -> Iterator[Finding]:
    missing = dict[str, list[str]]()
    for name, (extra, _) in _requirements().items():
        if extra and _version(name) is None:
            missing.setdefault(extra, []).append(name)
    for extra, names in missing.items():
        gives = GIVES.get(extra, f"`--tracker {extra}`")
        yield Finding(f"extra {extra}", "note", f"{', '.join(names)} missing, for {gives}", f"`pip install 'avtcli[{extra}]'`")
    if not missing:
        yield Finding("extras", "ok", "all installed")


def _variables() -> Iterator[Finding]:
    launcher = [name for name in VARIABLES if name in os.environ]
    if launcher:
        found = f"{', '.join(launcher)}: those of a launcher such as torchrun, which avt obeys"
        yield Finding("variables of a launcher", "note", found, f"if none runs, `unset {' '.join(launcher)}`")
    ignored = sorted(name for name in os.environ if name.startswith(ACCELERATE_VARIABLES))
    if ignored:
        found = f"{', '.join(ignored)}: ignored, options alone decide"
        yield Finding("variables of accelerate", "note", found, f"`unset {' '.join(ignored)}`")
