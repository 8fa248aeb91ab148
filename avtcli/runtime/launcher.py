"""Processes that torchrun, srun or another launcher started: what its variables say, and how they connect."""

import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from avtcli.errors import AvtError, RunFailedError, one_line
from avtcli.events import Notice, OnEvent

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

COUNTS: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
VARIABLES: Final = (*COUNTS, "MASTER_ADDR", "MASTER_PORT")
"""The variables of PyTorch's launchers, in every process that they start."""
ACCELERATE_VARIABLES: Final = (
    *("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "FORK_LAUNCHED"),
    *("PMI_", "MPI_LOCAL", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_"),
)
"""How the names of the variables begin from which Accelerate takes settings that no option of avt gives."""


WAIT: Final = timedelta(hours=2)
"""How long a connected process waits for the others: longer than an evaluation. A launcher notices at once when one ends."""
PATIENCE: Final = timedelta(minutes=10)
"""How long a process that starts waits for the others to come."""
QUIET_SECONDS: Final = 5.0  # of waiting, after which it says so


@dataclass(frozen=True)
class Launch:
    """This process among the `world` that a launcher started, of which `local_world` run on this machine."""

    rank: int = 0
    world: int = 1
    local_world: int = 1


def read_launch() -> Launch:
    """Read the launcher's variables; without them, or for a single process, this one is alone.

    A task of Slurm's `srun` gets those of PyTorch's launchers first, which the libraries read too.

    Raises:
        AvtError: if they are no numbers, incomplete, or contradict each other.
    """
    _name_srun_task()
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    numbers = {name: text for name, text in found.items() if name != "MASTER_ADDR"}
    junk = [name for name, text in numbers.items() if not (text.isascii() and text.isdecimal() and len(text) < 10)]
    if junk:
        raise _refused(found, f"no number: {', '.join(junk)}")
    if not any(name in found for name in COUNTS):
        return Launch()
    rank, world, local_rank, local_world = (int(found.get(name, default)) for name, default in zip(COUNTS, "0101", strict=True))
    needed = VARIABLES if world > 1 else ("RANK", "WORLD_SIZE") if "RANK" in found or "WORLD_SIZE" in found else ()
    missing = [name for name in needed if name not in found]
    if missing:
        raise _refused(found, f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if not (rank < world and local_rank < local_world <= world and local_rank <= rank):
        raise _refused(found, "they contradict each other")
    return Launch(rank, world, local_world)


def _name_srun_task() -> None:
    """Set PyTorch's variables in one of several tasks of `srun`, unless a launcher or a user set some of the counts."""
    slurm = os.environ
    world = slurm.get("SLURM_STEP_NUM_TASKS") or slurm.get("SLURM_NTASKS", "1")
    if any(name in slurm for name in COUNTS) or world == "1" or "SLURM_PROCID" not in slurm or _is_outside_of_srun():
        return
    hosts = slurm.get("SLURM_STEP_NODELIST") or slurm.get("SLURM_NODELIST", "localhost")
    tasks = slurm.get("SLURM_STEP_TASKS_PER_NODE") or slurm.get("SLURM_TASKS_PER_NODE", world)
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NODEID")
    job, step, node = (int(slurm[name]) if slurm.get(name, "").isdecimal() else 0 for name in names)
    local, local_world = slurm.get("SLURM_LOCALID", "0"), tasks_of_node(tasks, node)
    gpus = slurm.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if gpus != [""] and len(gpus) < local_world and local.isdecimal():  # each task has its own, which it numbers from 0
        local = str(int(local) % len(gpus))
    slurm.update(RANK=slurm["SLURM_PROCID"], WORLD_SIZE=world, LOCAL_RANK=local, LOCAL_WORLD_SIZE=str(local_world))
    slurm.setdefault("MASTER_ADDR", first_host(hosts))
    slurm.setdefault("MASTER_PORT", str(20_000 + (31 * job + step) % 10_000))  # below those that systems hand out


def _is_outside_of_srun() -> bool:
    """Whether this is the script or shell of a job of Slurm, whose counts are of the tasks that it may start."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ


def unstarted_tasks() -> str:
    """Say so where Slurm allotted several tasks and this process, which no launcher started, is none of them."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if tasks == "1" or is_launched() or not _is_outside_of_srun():
        return ""
    return f"Slurm allotted {tasks} tasks and this is one process on one machine: `srun avt ...` starts them all"


def first_host(hosts: str) -> str:
    """Return the first host of Slurm's compact list, as in `n[001-004,7],m2`."""
    first = re.match(r"(?:[^,\[]|\[[^]]*])*", hosts)
    return re.sub(r"\[([^],-]*)[^]]*]", r"\1", first[0] if first else hosts)


def tasks_of_node(tasks: str, node: int) -> int:
    """Return the number of tasks on a node, counted from 0, from Slurm's compact list, as in `2(x3),1`."""
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks)
    counts = [int(count) for count, times in runs for _ in range(int(times or 1))]
    return counts[min(node, len(counts) - 1)] if counts else 1


def is_launched() -> bool:
    """Whether a launcher started this process."""
    return "RANK" in os.environ


def is_connected() -> bool:
    """Whether this process is connected with others, see `connect`."""
    return "torch" in sys.modules and bool(sys.modules["torch"].distributed.is_initialized())


def connect(device: str, *, on_event: OnEvent) -> None:
    """Connect this process with the others of its launch, for exchanges on a device, cpu or cuda; nothing where it is done.

    What it waits for is said once. It waits in Python, so that a signal ends it at once.

    Raises:
        AvtError: if the address is not free.
        RunFailedError: if others did not come in time, or ended.
    """
    launch = read_launch()
    if launch.world == 1 or is_connected():
        return
    from torch import distributed

    place, world, began = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", launch.world, time.monotonic()

    def wait(is_over: Callable[[], bool], awaited: Callable[[], str], *, everywhere: bool) -> None:
        said = False
        while not is_over():
            waited = time.monotonic() - began
            if waited > PATIENCE.total_seconds():
                raise RunFailedError(
                    f"{awaited()} did not come to {place} in {PATIENCE.total_seconds() / 60:g} minutes. See why, and that all "
                    f"have one MASTER_ADDR and MASTER_PORT; one process alone needs `unset {' '.join(VARIABLES)}`."
                )
            if waited > QUIET_SECONDS and not said:
                on_event(Notice(f"waiting for {awaited()} at {place}", everywhere=everywhere))
                said = True
            time.sleep(0.05)

    opened: list[Store | AvtError] = []
    threading.Thread(target=lambda: opened.append(_open_store(launch, place)), daemon=True).start()
    wait(lambda: bool(opened), lambda: f"process 0 of {world}", everywhere=launch.rank > 0)
    store = opened[0]
    if isinstance(store, AvtError):
        raise store
    names = [_arrival(rank) for rank in range(world)]

    def missing() -> str:
        ranks = [rank for rank, name in enumerate(names) if not store.check([name])]
        return f"{len(ranks)} of {world} processes ({list_ranks(ranks)})"

    try:
        wait(lambda: store.check(names), missing, everywhere=False)
        backend = "nccl" if device == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=launch.rank, world_size=world, timeout=WAIT)
    except RuntimeError as error:
        raise RunFailedError(f"A process that was at {place} ended, or cannot be reached ({one_line(error)[:200]}).") from error


def list_ranks(ranks: Sequence[int]) -> str:
    """List the numbers of processes, the first ones of many."""
    return ", ".join([*map(str, ranks[:8]), *(["..."] if len(ranks) > 8 else [])])


def _arrival(rank: int) -> str:
    """The name under which a process says that it is there; an agent's store may outlive the processes."""
    return f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}: {rank}"


def _open_store(launch: Launch, place: str) -> "Store | AvtError":
    """Open the store by which the processes find each other, in the first of them or in the agent, and say who is there."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host, _, port = place.rpartition(":")
    is_master = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = TCPStore(host, int(port), launch.world, is_master, timeout=PATIENCE, wait_for_workers=False, multi_tenant=True)
        store.set(_arrival(launch.rank), "")
    except RuntimeError as error:
        return AvtError(
            f"Process {launch.rank} cannot use {place} ({one_line(error)[:200]}). MASTER_ADDR is the machine of process 0, and "
            "MASTER_PORT a port that is free there: another launch may have it."
        )
    return store


def must_launch(processes: int) -> bool:
    """Whether that number of processes is still to be started: not for one, nor if a launcher has started that many.

    Raises:
        AvtError: if a launcher started another number of processes, or its variables are left over from one that did.
    """
    found = {name: os.environ[name] for name in COUNTS if name in os.environ}
    if processes == 1 or read_launch().world == processes:
        return False
    if found:
        raise _refused(found, f"--processes {processes} starts its processes itself")
    return True


def is_first_to_report(message: str) -> bool:
    """Whether no other process of this launch has reported this message.

    Processes that fail alike would each print it. A launcher of PyTorch gives them a folder in common.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/LOCAL_RANK/error.json
    if not error_file:
        return True
    try:
        name = hashlib.sha256(message.encode()).hexdigest()[:16]
        (Path(error_file).parent.parent / f"reported-{name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # rather twice than not at all
        return True
    return True


def _refused(found: dict[str, str], why: str) -> AvtError:
    stated = " ".join(f"{name}={text!r}" if not text.isalnum() else f"{name}={text}" for name, text in found.items())
    return AvtError(
        f"The environment is that of a launcher such as torchrun ({stated}): {why}. If none runs, `unset {' '.join(found)}`."
    )
