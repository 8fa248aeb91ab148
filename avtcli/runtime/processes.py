"""What the processes of one command exchange: wishes, results, errors, and shares of the work."""

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed import ProcessGroup

from avtcli.errors import AvtError, RunFailedError, one_line, shown
from avtcli.runtime.launcher import WAIT, list_ranks

S = TypeVar("S")
T = TypeVar("T")


def build_cpu_group(accelerator: Accelerator, *, wait: timedelta = WAIT) -> ProcessGroup | None:
    """Build the group in which processes exchange wishes and results, without waiting for a GPU; none for one process.

    An exchange fails where the others do not come to it in a time of `wait`.
    """
    if accelerator.num_processes == 1:
        return None
    group = torch.distributed.new_group(backend="gloo", timeout=wait)
    assert isinstance(group, ProcessGroup)  # every process is a member
    return group


def run_in_main(group: ProcessGroup | None, work: Callable[[], T]) -> T:
    """Run work in the main process while the others wait; return its result in all of them.

    Raises:
        AvtError: in all processes, if the work raises it.
        RunFailedError: in the others, for any other error of the main process.
    """
    if group is None:
        return work()
    shared, own = list[Any]([None, None]), None
    if torch.distributed.get_rank() == 0:
        try:
            shared[0] = work()
        except Exception as error:
            own, shared[1] = error, _for_the_others(error)
    torch.distributed.broadcast_object_list(shared, src=0, group=group)
    if failure := own or shared[1]:
        raise failure
    result: T = shared[0]
    return result


@contextlib.contextmanager
def failing_together(group: ProcessGroup | None) -> Iterator[None]:
    """Let all processes fail where one does, within; at the end each waits for the others.

    Raises:
        AvtError: in all processes, if one raises it.
        RunFailedError: in the others, for any other error of one.
    """
    own, shared = None, list[AvtError]()
    try:
        yield
    except Exception as error:
        if group is None:
            raise
        own, shared = error, [_for_the_others(error)]
    with lost_processes_explained():
        failures = gather_lists(group, shared)
    if own is not None and not isinstance(own, AvtError):
        raise own
    for failure in failures:
        raise failure


def _for_the_others(error: Exception) -> AvtError:
    """What other processes raise where this one fails."""
    if isinstance(error, AvtError):
        return error
    return RunFailedError(f"Process {torch.distributed.get_rank()} failed: {one_line(error)}.")


def check_agreement(group: ProcessGroup | None, stated: Mapping[str, object]) -> None:
    """Refuse to go on where processes state different things by one name, such as a setting.

    Raises:
        AvtError: in all processes.
    """
    every = gather_lists(group, [{name: str(value) if isinstance(value, Path) else value for name, value in stated.items()}])
    known = sorted({name for own in every for name in own})
    differing = [name for name in known if len({repr(own.get(name)) for own in every}) > 1]
    found = [f"{name} is {_by_process([shown(own.get(name)) for own in every])}" for name in differing]
    if found:
        more = f"; {len(found) - 3} more differ" if len(found) > 3 else ""
        raise AvtError(
            f"The processes do not do the same: {'; '.join(found[:3])}{more}. Give all of them the same command and the same "
            "images; runs of their own need a MASTER_PORT of their own."
        )


def _by_process(texts: Sequence[str]) -> str:
    """State each text with the numbers of the processes whose it is."""
    found: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        found.setdefault(text, []).append(rank)
    return ", ".join(f"{text} in process {list_ranks(ranks)}" for text, ranks in found.items())


def agree(group: ProcessGroup | None, signalled: int, due: bool, failure: str) -> tuple[int, bool, str]:
    """Share the wish to stop or save and what failed, so that all processes do the same after the same step."""
    if group is None:
        return signalled, due, failure
    flags = torch.tensor([signalled, int(due), torch.distributed.get_rank() + 1 if failure else 0])
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX, group=group)
    signalled, due, failed = flags.tolist()
    shared = [failure]
    if failed:
        torch.distributed.broadcast_object_list(shared, src=failed - 1, group=group)
    return signalled, bool(due), shared[0]


def gather_lists(group: ProcessGroup | None, own: list[T]) -> list[T]:
    """Return the elements of the lists of all processes, in their order, in each of them."""
    if group is None:
        return own
    parts: list[list[T]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, own, group=group)
    return [element for part in parts for element in part]


def map_shared(group: ProcessGroup | None, work: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """Do the work on each item in one of the processes; return the results in the order of the items in all of them.

    An error of one is an error of all, see `failing_together`.
    """
    rank, world = (0, 1) if group is None else (torch.distributed.get_rank(), torch.distributed.get_world_size())
    own = list[tuple[int, T]]()
    with failing_together(group):
        own += [(place, work(items[place])) for place in range(rank, len(items), world)]
    return [result for _, result in sorted(gather_lists(group, own), key=itemgetter(0))]


@contextlib.contextmanager
def shared_rows(group: ProcessGroup | None, tensors: Sequence[Tensor], batches: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Yield this process's share of the batches, and send the rows of `tensors` that it then filled to all others.

    The batches are rows (B,) int64 each, in order and without a gap. Shares are contiguous and of whole batches.

    An error of one is an error of all, see `failing_together`.
    """
    if group is None:
        yield batches
        return
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    bounds = [-(-len(batches) * own // world) for own in range(world + 1)]  # none larger than that of the main process
    shares = [batches[start:stop] for start, stop in pairwise(bounds)]
    with failing_together(group):
        yield shares[rank]
    with lost_processes_explained():
        for owner, share in enumerate(shares):
            for tensor in tensors if share else ():
                rows = tensor[int(share[0][0]) : int(share[-1][-1]) + 1]
                torch.distributed.broadcast(rows, owner, group=group if rows.device.type == "cpu" else None)


def resume_command(run: Path, *, processes: int) -> str:
    """Return the complete command that continues a run, from any folder."""
    several = f" --processes {processes}" if processes > 1 else ""
    return f"avt pretrain --resume {shlex.quote(str(run.absolute()))}{several}"


@contextlib.contextmanager
def lost_processes_explained() -> Iterator[None]:
    """Turn the failure of an exchange between processes into a `RunFailedError`: another one ended, or cannot be reached."""
    try:
        yield
    except RuntimeError as error:
        cause = str(error).partition("\n")[0]
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in cause.lower() and "NCCL" not in cause:
            raise
        raise RunFailedError(f"Another process of the run ended, or cannot be reached ({cause[:200]}).") from error
