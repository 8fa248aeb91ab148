"""Several processes of one command on this machine, which share each batch."""

import os
import shlex
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor

from avtcli.errors import RunFailedError
from avtcli.runtime.signals import heeded_signals


def launch(processes: int, args: list[str]) -> int:
    """Run `avt ARGS` in several processes that share one process group; return the exit code, 128 + n after signal n.

    Raises:
        RunFailedError: if one of them was killed, and the others were ended.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id="avt",
        max_restarts=0,  # a restart would repeat a run that a signal stopped on purpose
        signals_to_handle=",".join(signal.Signals(number).name for number in heeded_signals()),
        shutdown_timeout=120,  # longer than any save
    )
    try:
        elastic_launch(config, sys.executable)("-m", "avtcli", *args)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise RunFailedError(
                f"Process {rank} of {processes} was ended by {name}, and the others were stopped. What was saved is intact: "
                "go on with `avt pretrain --resume RUN`. If it was killed for memory, use fewer --processes or --workers."
            ) from None
        return failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def gather_batch(rows: Tensor, count: int) -> Tensor:
    """Gather the rows of all processes in the order of the whole batch; gradients flow back to each process's own rows.

    Process r of W holds the rows r, r + W, r + 2 W and so on, (B, ...), of the `count` rows of the batch.
    """
    from torch.distributed.nn.functional import all_gather

    most = -(-count // torch.distributed.get_world_size())
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])]) if len(rows) < most else rows
    parts = all_gather(padded.contiguous())  # type: ignore[no-untyped-call]
    return torch.stack(list(parts), 1).flatten(0, 1)[:count]


def resume_command(run: Path, *, processes: int) -> str:
    """Return the complete command that continues a run, from any folder."""
    several = f" --processes {processes}" if processes > 1 else ""
    return f"avt pretrain --resume {shlex.quote(str(run.absolute()))}{several}"
