"""`avt bench`: our implementation against an independent baseline, on this machine, in one process and in turn."""

import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avtcli.bench.benchmark_timing import BenchConfig, Comparison, compare
from avtcli.bench.benchmarks import BENCHMARKS
from avtcli.errors import AvtError, nearest
from avtcli.events import OnEvent, Progress
from avtcli.runtime.devices import build_accelerator, choose_precision, describe_device
from avtcli.runtime.environment import describe_environment


@dataclass(frozen=True)
class BenchResult:
    """What `avt bench` reports; `environment` has the fields of a run's env.json."""

    commit: str | None
    environment: dict[str, Any]
    cpu: str
    cpus: int
    rounds: int
    measurements: tuple[Comparison, ...]


def bench(config: BenchConfig, *, only: Sequence[str] = (), rounds: int, on_event: OnEvent) -> BenchResult:
    """Run the benchmarks named by `only`, or all, and time each side of them `rounds` times.

    Raises:
        AvtError: for an unknown benchmark, or a precision that the device does not support.
    """
    names, device = check_names(only), config.device
    precision = choose_precision(config.precision, device.type)
    accelerator = build_accelerator(device.type, precision, on_event=on_event)
    used = describe_device(accelerator)
    environment = describe_environment(device=used, processes=1, plugins=[], data_fingerprint="embedded")
    comparisons = []
    for index, name in enumerate(names):
        on_event(Progress("benchmarking", index, len(names), "benchmarks", name))
        with closing(BENCHMARKS[name](config)) as benchmark:
            comparisons.append(compare(name, benchmark, device=device, rounds=rounds))
    on_event(Progress("benchmarking", len(names), len(names), "benchmarks"))
    return BenchResult(commit_of_checkout(), environment, cpu_name(), os.cpu_count() or 1, rounds, tuple(comparisons))


def check_names(only: Sequence[str]) -> list[str]:
    """Return the benchmarks to run: all, or the named ones in the order of `BENCHMARKS`."""
    for name in only:
        if name not in BENCHMARKS:
            raise AvtError(f"No benchmark is called '{name}'. {nearest(name, BENCHMARKS)}Known: {', '.join(BENCHMARKS)}.")
    return [name for name in BENCHMARKS if not only or name in only]


def commit_of_checkout() -> str | None:
    """The commit of the git checkout that holds this file, `-dirty` where it was changed; none outside one or without git."""
    here = Path(__file__)
    in_git = ["git", "-C", str(here.parent)]
    commands = (["ls-files", "--error-unmatch", here.name], ["describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"])
    try:
        ended = [subprocess.run([*in_git, *c], capture_output=True, text=True, check=True) for c in commands]
    except (OSError, subprocess.CalledProcessError):
        return None
    return ended[-1].stdout.strip()


def cpu_name() -> str:
    """The processor's model name on Linux, elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
