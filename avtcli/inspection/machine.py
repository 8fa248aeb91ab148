"""The machine and what runs on it, with a PyTorch that can be imported: devices, memory, data sets, plugins."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from avtcli import registry
from avtcli.errors import AvtError
from avtcli.features.cache_storage import memory_bytes
from avtcli.inspection.finding import Finding
from avtcli.runtime.reader_workers import SHM

LITTLE_MEMORY, LITTLE_SHM = 2e9, 1e9


def check_machine(data: Path) -> Iterator[Finding]:
    """Check devices, threads, memory, the data sets in a folder, and that each plugin can be imported."""
    yield from _devices()
    yield _threads()
    yield _memory()
    if os.path.isdir(SHM):
        yield _shared_memory()
    yield from _data(data)
    yield from _plugins()


def _devices() -> Iterator[Finding]:
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            own = torch.cuda.get_device_properties(i)
            yield Finding(f"GPU {i}", "ok", f"{own.name}, {own.total_memory / 1e9:.0f} GB")
    elif torch.backends.mps.is_available():
        yield Finding("GPU", "ok", "mps")
    elif os.path.exists("/proc/driver/nvidia/version"):
        built = "for the CPU alone" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}, which does not start"
        hint = "install the torch that fits the driver, see https://pytorch.org/get-started"
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
