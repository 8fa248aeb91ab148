"""Processes that a launcher such as torchrun started: what its environment variables say, without importing PyTorch."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from avtcli.errors import AvtError

COUNTS: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
VARIABLES: Final = (*COUNTS, "MASTER_ADDR", "MASTER_PORT")
"""The variables of PyTorch's launchers, in every process that they start."""
ACCELERATE_VARIABLES: Final = (
    *("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "FORK_LAUNCHED"),
    *("PMI_", "MPI_LOCAL", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_"),
)
"""How the names of the variables begin from which Accelerate takes settings that no option of avt gives."""


@dataclass(frozen=True)
class Launch:
    """This process among the `world` that a launcher started, of which `local_world` run on this machine."""

    rank: int = 0
    world: int = 1
    local_world: int = 1


def read_launch() -> Launch:
    """Read the launcher's variables; without them, or for a single process, this one is alone.

    Raises:
        AvtError: if they are no numbers, incomplete, or contradict each other.
    """
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


def is_launched() -> bool:
    """Whether a launcher started this process."""
    return "RANK" in os.environ


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
