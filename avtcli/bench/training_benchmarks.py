"""The benchmarks of training: its step, the loop around it, and the loop in several processes."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from avtcli.bench.bench_training import (
    OurStep,
    as_pair,
    autocast_type,
    baseline_pairs,
    baseline_step,
    baseline_workers,
    build_bench_setup,
    first_batch,
    our_batches,
    our_images,
    our_step,
)
from avtcli.bench.benchmark_timing import BenchConfig, Benchmark, synchronise
from avtcli.bench.roofline import copy_gigabytes, matmul_gflops, work_per_pair
from avtcli.data.training_loader import Batch
from avtcli.errors import RunFailedError
from avtcli.events import Event
from avtcli.runtime.capture import WARM_UP
from avtcli.training.training_setup import TrainingSetup

STEP_BATCHES: Final = 3  # of an epoch of `step`, which uses the first one
PROCESSES: Final = 2
COMPARED_STEPS: Final = 20  # with more of them, the losses differ by rounding that has grown

T = TypeVar("T")


def build_step_setup(config: BenchConfig, *, batches: int) -> tuple[TrainingSetup, str]:
    """Build a setup whose epochs have a number of full batches, and describe it."""
    batch = config.batch_size
    setup = build_bench_setup(config, images=batch * batches, batch_size=batch)
    description = f"{config.backbone.name}, {setup.spec.channels}x{setup.size[0]}x{setup.size[1]}, batch {batch}"
    options = setup.config.backbone.options
    return setup, description + "".join(f", {name}={options[name]}" for name in config.backbone.options)


def measure_step(config: BenchConfig) -> Benchmark:
    """One training step on the same batch again and again; both sides start from the same weights.

    The figures:

    - `loss_difference`: largest difference of the losses of the first steps, over the largest loss.
    - `gflop_per_pair`, `gflops`, `matmul_share`: the arithmetic of convolutions and matrix products, and its share of what a
      large matrix product reaches in the precision of the step.
    - `memory_share`: the bytes that the step saves for its backward pass, written once and read once, per second, as a share of
      what a large copy reads and writes. It is a lower bound of what a step without recomputation moves.
    - `precision`, `channels_last`, `compile`, `capture`: how our step is computed.
    - `first_step_seconds`: from a new trainer until a step runs as all later ones do, with compilation and capture: the end of
      step `WARM_UP` + 1 on a CUDA device, elsewhere of the first.
    - `peak_memory_gb`: on a CUDA device, the most memory that was allocated in these steps. A captured graph is replayed in the
      memory of its capture. The baseline's copy of the weights is counted too.
    """
    (setup, description), steps = build_step_setup(config, batches=STEP_BATCHES), config.steps
    batch, autocast = first_batch(setup), autocast_type(setup)
    pair, losses, baseline_losses = as_pair(batch), list[float](), list[float]()
    flops, saved = work_per_pair(baseline_step(setup, autocast=autocast), pair)
    theirs = baseline_step(setup, autocast=baseline_type(setup))  # before ours changes the weights
    ours, start_figures = start_steps(setup, batch, losses)

    def figures(rate: float) -> dict[str, Any]:
        compared, gflops = [*zip(losses, baseline_losses, strict=False)][:COMPARED_STEPS], rate * flops / 1e9
        return {
            "loss_difference": max(abs(a - b) for a, b in compared) / max(abs(b) for _, b in compared),  # one may be near 0
            "gflop_per_pair": flops / 1e9,
            "gflops": gflops,
            "matmul_share": gflops / matmul_gflops(config, autocast or torch.float32),
            "memory_share": rate * 2 * saved / 1e9 / copy_gigabytes(config),
            "precision": setup.accelerator.mixed_precision.replace("no", "fp32"),
            "channels_last": setup.config.channels_last,
            "compile": setup.config.compile,
            **start_figures,
        }

    return Benchmark(
        f"training step of {description}; baseline: eager, {describe_baseline(setup)}, from the same weights and pairs",
        "pairs/s",
        ours=lambda: take_steps(ours, batch, losses, steps),
        baseline=lambda: take_steps(theirs, pair, baseline_losses, steps),
        counts=(steps * config.batch_size, steps * config.batch_size),
        figures=figures,
    )


def baseline_type(setup: TrainingSetup) -> torch.dtype | None:
    """The type of the baseline's autocast: ours on a CUDA device, elsewhere none."""
    return autocast_type(setup) if setup.accelerator.device.type == "cuda" else None


def describe_baseline(setup: TrainingSetup) -> str:
    """Say how the baseline's step is computed."""
    if setup.accelerator.device.type != "cuda":
        return "float32"
    return f"{setup.accelerator.mixed_precision.replace('no', 'float32')}, channels last"


def take_steps(step: Callable[[T], Tensor], batch: T, losses: list[float], steps: int) -> None:
    """Take steps on one batch; their losses stay on the device until all are done."""
    losses += torch.stack([step(batch) for _ in range(steps)]).tolist()


def start_steps(setup: TrainingSetup, batch: Batch, losses: list[float]) -> tuple[OurStep, dict[str, Any]]:
    """Build our step and take the first ones; return it with the figures of that, see `measure_step`."""
    device = setup.accelerator.device
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    synchronise(device)
    began = time.perf_counter()
    refusals: list[Event] = []
    step = our_step(setup, on_event=refusals.append)
    take_steps(step, batch, losses, 1 + WARM_UP * on_cuda)
    synchronise(device)
    seconds, captured = time.perf_counter() - began, bool(setup.config.capture) and not refusals
    figures = {"capture": captured, "first_step_seconds": seconds}
    if on_cuda:
        figures["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return step, figures


def measure_loop(config: BenchConfig) -> Benchmark:
    """Make pairs and train on them; the losses of a round are read at its end.

    What the baseline's workers read ahead while our side runs counts for the baseline.
    """
    (setup, description), steps = build_step_setup(config, batches=config.epoch_batches), config.steps
    images, workers = our_images(setup), baseline_workers(config.device)
    waits: dict[str, list[tuple[float, float]]] = {"data_wait": [], "baseline_data_wait": []}

    def run(figure: str, batches: Iterator[T], step: Callable[[T], Tensor]) -> None:
        began, waited, losses = time.perf_counter(), 0.0, list[Tensor]()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            losses.append(step(batch))
        torch.stack(losses).tolist()
        synchronise(config.device)
        waits[figure].append((waited, time.perf_counter() - began))

    items = baseline_pairs(setup, images.images, batch_size=config.batch_size, workers=workers)
    return Benchmark(
        f"pairs and training step of {description}; baseline: {describe_baseline(setup)}, a DataLoader of {workers} workers",
        "pairs/s",
        ours=partial(run, "data_wait", our_batches(setup, images), our_step(setup)),
        baseline=partial(run, "baseline_data_wait", items, baseline_step(setup, autocast=baseline_type(setup))),
        counts=(steps * config.batch_size, steps * config.batch_size),
        figures=lambda rate: {name: _share(timed[1:]) for name, timed in waits.items()},  # without the warm-up round
    )


def measure_processes(config: BenchConfig) -> Benchmark:
    """Make pairs and train on them in two processes on the CPU; the rate is that of each of them.

    The baseline is one process. Each computes on one thread, and has the same number of images a step.
    """
    config = replace(config, device=torch.device("cpu"))
    with ExitStack() as started:
        (description, two), (_, one) = (_start_processes(config, world, started) for world in (PROCESSES, 1))
        close = started.pop_all().close
    counts = config.steps * config.batch_size, config.steps * config.batch_size
    what = f"{PROCESSES} processes of one thread, {description} over all, per process; baseline: one process of one thread"
    return Benchmark(what, "pairs/s", ours=two.take_steps, baseline=one.take_steps, counts=counts, close=close)


@dataclass(frozen=True)
class _Workers:
    """Processes that share a setup, and the connection to each."""

    processes: list[BaseProcess]
    connections: list[Connection]

    def receive(self) -> list[Any]:
        """Wait for what each of them sends."""
        with _ends_explained():
            return [self._receive(connection) for connection in self.connections]

    def _receive(self, connection: Connection) -> Any:
        if connection not in wait([connection, *(process.sentinel for process in self.processes)]):
            raise EOFError
        return connection.recv()

    def take_steps(self) -> None:
        """Let all of them take the steps of a round."""
        with _ends_explained():
            for connection in self.connections:
                connection.send(True)
        self.receive()


@contextmanager
def _ends_explained() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        raise RunFailedError("A process of the benchmark ended: see why above, or whether memory ran out.") from None


def _start_processes(config: BenchConfig, world: int, started: ExitStack) -> tuple[str, _Workers]:
    """Start processes that share a setup, which end with `started`; return its description, and them."""
    context = torch.multiprocessing.get_context("spawn")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(found.getsockname()[1])}
    shared |= {name: str(world) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    config, workers = replace(config, batch_size=world * config.batch_size), _Workers([], [])
    for rank in range(world):
        ours, theirs = context.Pipe()
        variables = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = context.Process(target=_train_when_asked, args=(theirs, config, variables), daemon=True)
        process.start()
        started.callback(process.join)
        started.callback(process.terminate)  # before that
        theirs.close()
        workers.processes.append(process)
        workers.connections.append(ours)
    return workers.receive()[0], workers


def _train_when_asked(connection: Connection, config: BenchConfig, variables: dict[str, str]) -> None:
    os.environ |= variables
    torch.set_num_threads(1)
    setup, description = build_step_setup(config, batches=config.epoch_batches)
    batches, step = our_batches(setup, our_images(setup)), our_step(setup)
    connection.send(description)
    while connection.recv():
        connection.send(torch.stack([step(next(batches)) for _ in range(config.steps)]).tolist())


def _share(waits: list[tuple[float, float]]) -> float:
    return sum(waited for waited, _ in waits) / sum(seconds for _, seconds in waits)
