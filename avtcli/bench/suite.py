"""How fast this house is on this machine: each piece beside the plain way to do it, in one process and in turn."""

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from avtcli.bench import data_benchmarks as data
from avtcli.bench import probe_benchmarks as upkeep
from avtcli.bench import step_benchmarks as step
from avtcli.bench.timing import ON_CPU, ON_GPU, BenchConfig, Benchmark, Comparison, Scale, compare
from avtcli.errors import AvtError, nearest
from avtcli.events import OnEvent, Progress
from avtcli.runtime.devices import build_accelerator, choose_device, choose_precision, describe_device
from avtcli.runtime.environment import describe_environment

MEASUREMENTS: Final[dict[str, Callable[[BenchConfig], Benchmark]]] = {
    "homographies": data.measure_homographies,
    "warp-32": data.measure_warp_small,
    "warp-224": data.measure_warp_large,
    "pairs": data.measure_pairs,
    "step-nin": step.measure_step_nin,
    "step-alexnet": step.measure_step_alexnet,
    "step-resnet18": step.measure_step_resnet,
    "arithmetic": step.measure_arithmetic,
    "loop": step.measure_loop,
    "loop-narrow": step.measure_loop_narrow,
    "probe": upkeep.measure_probe,
    "checkpoint": upkeep.measure_checkpoint,
    "start": upkeep.measure_start,
}
"""By name, in the order that they are taken in."""


@dataclass(frozen=True)
class BenchResult:
    """What `avt bench` reports.

    Attributes:
        commit: of the checkout that the code runs from, with `-dirty` where it was changed; none outside of one.
        environment: versions, device, threads and the rest of what a run's env.json says.
        cpu: the processor's name, as the system gives it.
        cpus: how many there are.
        rounds: that each figure is the median of.
        measurements: in the order that they were taken in.
    """

    commit: str | None
    environment: dict[str, Any]
    cpu: str
    cpus: int
    rounds: int
    measurements: tuple[Comparison, ...]


def bench(
    *,
    only: Sequence[str] = (),
    rounds: int,
    device: str = "auto",
    compile: bool = False,
    precision: str = "auto",
    scale: Scale | None = None,
    on_event: OnEvent,
) -> BenchResult:
    """Measure.

    Args:
        only: names of `MEASUREMENTS`; none means all.
        rounds: how often each side of a measurement is timed.
        device: auto, cpu, cuda or mps.
        compile: whether our training step is compiled.
        precision: of our training step: auto, fp32, bf16 or fp16; the baseline's is fp32.
        scale: how much a round does; left out, what suits the device.
        on_event: told which measurement is next.

    Raises:
        AvtError: for a measurement or a device that there is not, or a precision that the device has not.
    """
    chosen = check_names(only)
    name = choose_device(device)
    accelerator = build_accelerator(name, choose_precision(precision, name))
    bench = BenchConfig(accelerator.device, scale or (ON_CPU if name == "cpu" else ON_GPU), compile, precision)
    environment = describe_environment(
        device=describe_device(accelerator), processes=1, plugins=[], data_fingerprint="embedded"
    )
    found = []
    for index, each in enumerate(chosen):
        on_event(Progress("measuring", index, len(chosen), "measurements", each))
        found.append(compare(each, MEASUREMENTS[each](bench), device=bench.device, rounds=rounds))
    on_event(Progress("measuring", len(chosen), len(chosen), "measurements"))
    return BenchResult(commit_of_checkout(), environment, cpu_name(), os.cpu_count() or 1, rounds, tuple(found))


def check_names(only: Sequence[str]) -> list[str]:
    """The measurements to take: all, or the named ones in the order of `MEASUREMENTS`.

    Raises:
        AvtError: for one that there is not.
    """
    for name in only:
        if name not in MEASUREMENTS:
            raise AvtError(f"No measurement is called '{name}'. {nearest(name, MEASUREMENTS)}Known: {', '.join(MEASUREMENTS)}.")
    return [name for name in MEASUREMENTS if not only or name in only]


def commit_of_checkout() -> str | None:
    """The commit of the git checkout that holds this file, or none: installed elsewhere, or no git."""
    here = Path(__file__)
    in_git = ["git", "-C", str(here.parent)]
    commands = (["ls-files", "--error-unmatch", here.name], ["describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"])
    try:
        ended = [subprocess.run([*in_git, *c], capture_output=True, text=True, check=True) for c in commands]
    except (OSError, subprocess.CalledProcessError):
        return None
    return ended[-1].stdout.strip()


def cpu_name() -> str:
    """The processor as Linux names it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
