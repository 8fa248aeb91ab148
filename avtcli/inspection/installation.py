"""A short check of the installation and the machine: what is in order, what to know, what is wrong, and the way out."""

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch

from avtcli import registry
from avtcli.config.resolution import data_folder
from avtcli.errors import AvtError, one_line
from avtcli.features.cache_storage import memory_bytes
from avtcli.runtime.devices import ACCELERATE_VARIABLES
from avtcli.runtime.launcher import VARIABLES
from avtcli.runtime.reader_workers import SHM
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

LITTLE_DISK, LITTLE_MEMORY, LITTLE_SHM = 5e9, 2e9, 1e9


@dataclass(frozen=True)
class Finding:
    """One line of the check: its subject, whether it is in order, what was found, and what to do about it."""

    subject: str
    status: Literal["ok", "note", "problem"]
    found: str
    way_out: str = ""


def check_installation(data_dir: str | None = None) -> Iterator[Finding]:
    """Check versions, devices, memory, disks, data, plugins, extras and environment variables; nothing is written."""
    yield from _versions()
    yield from _devices()
    yield _threads()
    yield _memory()
    if os.path.isdir(SHM):
        yield _shared_memory()
    yield _folder("runs", RUNS.absolute())
    yield _folder("data", data_folder(data_dir))
    yield from _data(data_folder(data_dir))
    yield from _plugins()
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
        oldest = _requirements()[name][1]
        version = platform.python_version() if name == "python" else importlib.metadata.version(name)
        own, tested = _numbers(version), f"tested with {oldest} to {newest}"
        if own < _numbers(oldest):
            update = "install a newer Python" if name == "python" else f"`pip install -U '{name}>={oldest}'`"
            yield Finding(name, "problem", f"{version} is too old, {tested}", update)
        elif own[: len(_numbers(newest))] > _numbers(newest):
            yield Finding(name, "note", f"{version}, {tested}", "if something fails, take a tested version")
        else:
            yield Finding(name, "ok", version)
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # operators of another torch
        hint = "install the release of torchvision that belongs to this torch, from the same index"
        yield Finding("torchvision with torch", "problem", one_line(error), hint)


def _devices() -> Iterator[Finding]:
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            own = torch.cuda.get_device_properties(i)
            yield Finding(f"GPU {i}", "ok", f"{own.name}, {own.total_memory / 1e9:.0f} GB")
    elif torch.backends.mps.is_available():
        yield Finding("GPU", "ok", "mps")
    elif os.path.exists("/proc/driver/nvidia/version"):
        built = "for the CPU alone" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}, which does not start"
        hint = "install the torch that fits the driver, see https://pytorch.org/get-started/locally"
        yield Finding("GPU", "note", f"an NVIDIA driver is here, and this torch was built {built}", hint)
    else:
        yield Finding("GPU", "note", "none, avt runs on the CPU", "start with small data sets, or take a machine with a GPU")


def _threads() -> Finding:
    threads = torch.get_num_threads()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    usable = cpus if quota is None else max(1, min(cpus, round(quota)))
    limited = "" if quota is None else f", of which the container may use {quota:g}"
    found = f"{cpus} CPU{'s' * (cpus > 1)}{limited}; torch takes {threads} thread{'s' * (threads > 1)}"
    if threads > usable:
        return Finding("CPU", "note", found, f"more threads than CPUs are slow: `export OMP_NUM_THREADS={usable}`")
    if 2 * threads < usable and "OMP_NUM_THREADS" in os.environ:
        return Finding("CPU", "note", found, "OMP_NUM_THREADS limits it: `unset OMP_NUM_THREADS`")
    return Finding("CPU", "ok", found)


def _cpu_quota() -> float | None:
    """The CPUs that the container's quota allows, by either version of cgroups."""
    root = Path("/sys/fs/cgroup")
    for paths in ((root / "cpu.max",), (root / "cpu/cpu.cfs_quota_us", root / "cpu/cpu.cfs_period_us")):
        if all(path.is_file() for path in paths):
            quota, period = " ".join(path.read_text() for path in paths).split()[:2]
            return int(quota) / int(period) if quota.isdecimal() else None
    return None


def _memory() -> Finding:
    found = f"{memory_bytes() / 1e9:.1f} GB"
    available = (
        re.search(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text()) if os.path.isfile("/proc/meminfo") else None
    )
    free = memory_bytes() if available is None else min(memory_bytes(), 1024 * int(available[1]))
    if free < LITTLE_MEMORY:
        return Finding("memory", "note", f"{found}, {free / 1e9:.1f} GB available", "end other programs, or take small batches")
    return Finding("memory", "ok", f"{found}, {free / 1e9:.1f} GB available")


def _shared_memory() -> Finding:
    free = shutil.disk_usage(SHM).free
    if free < LITTLE_SHM:
        hint = "processes that decode images share it: `docker run --shm-size=8g`, or `--workers 0`"
        return Finding("shared memory", "note", f"{free / 1e9:.2g} GB free in {SHM}", hint)
    return Finding("shared memory", "ok", f"{free / 1e9:.1f} GB free in {SHM}")


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


def _data(folder: Path) -> Iterator[Finding]:
    found: dict[str, Path | None] = registry.provided("dataset_folder", folder)
    there = [f"{name} in {path}" for name, path in found.items() if path is not None]
    if there:
        yield Finding("data sets", "ok", "; ".join(there))
    else:
        hint = "CIFAR-10 and Fashion-MNIST are downloaded when they are named, and fashion-mini comes with avt"
        yield Finding("data sets", "note", f"none of {', '.join(found)} in {folder}", hint)


def _plugins() -> Iterator[Finding]:
    names = [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]
    broken = []
    for kind, name in names:
        try:
            registry.load(registry.info(kind, name))
        except AvtError as error:
            broken.append(Finding(f"{kind} {name}", "problem", str(error)))
    yield Finding("plugins", "ok", f"{len(names) - len(broken)} can be imported")
    yield from broken


def _extras() -> Iterator[Finding]:
    missing = dict[str, list[str]]()
    for name, (extra, _) in _requirements().items():
        if extra and not _is_installed(name):
            missing.setdefault(extra, []).append(name)
    for extra, names in missing.items():
        gives = GIVES.get(extra, f"`--tracker {extra}`")
        yield Finding(f"extra {extra}", "note", f"{', '.join(names)} missing, for {gives}", f"`pip install 'avtcli[{extra}]'`")
    if not missing:
        yield Finding("extras", "ok", "all installed")


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _variables() -> Iterator[Finding]:
    launcher = [name for name in VARIABLES if name in os.environ]
    if launcher:
        found = f"{', '.join(launcher)}: those of a launcher such as torchrun, which avt obeys"
        yield Finding("variables of a launcher", "note", found, f"if none runs, `unset {' '.join(launcher)}`")
    ignored = sorted(name for name in os.environ if name.startswith(ACCELERATE_VARIABLES))
    if ignored:
        found = f"{', '.join(ignored)}: ignored, options alone decide"
        yield Finding("variables of accelerate", "note", found, f"`unset {' '.join(ignored)}`")
