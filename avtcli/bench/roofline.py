"""The work of a training step, and what the device could do: the two limits of the roofline, arithmetic and memory."""

from collections.abc import Callable
from statistics import median
from typing import Final

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from avtcli.bench.baseline import Pair
from avtcli.bench.benchmark_timing import BenchConfig, seconds_of
from avtcli.seeding import keyed_generator

TIMINGS: Final = 5


def work_per_pair(step: Callable[[Pair], object], pair: Pair) -> tuple[float, float]:
    """Count the work of a training step, per pair of the batch.

    Returns:
        The floating-point operations of convolutions and matrix products, and the bytes of what grows with the batch among the
        tensors saved for the backward pass: no parameters or buffers.
    """
    (flops, few), (_, more) = (_count(step, pair, pairs) for pairs in (2, 4))
    return flops / 2, (more - few) / 2


def _count(step: Callable[[Pair], object], pair: Pair, pairs: int) -> tuple[int, int]:
    """The floating-point operations and the saved bytes of a step on the first two pairs, repeated."""
    rows = torch.arange(pairs, device=pair[0].device) % 2
    first, second, target = (part[rows] for part in pair)
    with FlopCounterMode(display=False) as counter:
        saved = saved_bytes(lambda: step((first, second, target)))
    return counter.get_total_flops(), saved


def saved_bytes(work: Callable[[], object]) -> int:
    """Count the bytes of the tensors that some work saves for its backward pass, each storage once."""
    storages: dict[int, torch.UntypedStorage] = {}  # kept, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(storage.nbytes() for storage in storages.values())


def matmul_gflops(config: BenchConfig, dtype: torch.dtype) -> float:
    """Measure the GFLOP/s of a large matrix product."""
    side = config.matmul_side
    matrix = torch.randn(side, side, generator=keyed_generator("bench", "matmul")).to(config.device, dtype)
    return 2 * side**3 / 1e9 / _median_seconds(lambda: matrix @ matrix, config.device)


def copy_gigabytes(config: BenchConfig) -> float:
    """Measure the GB/s, read and written, of a large copy on the device."""
    source = torch.zeros(config.copy_bytes, dtype=torch.uint8, device=config.device)
    target = torch.ones_like(source)
    return 2 * config.copy_bytes / 1e9 / _median_seconds(lambda: target.copy_(source), config.device)


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time some work after a first call, which may allocate and choose."""
    return median([seconds_of(work, device) for _ in range(1 + TIMINGS)][1:])
