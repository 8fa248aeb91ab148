"""Several processes of one command on this machine, which share each batch."""

import os
import sys

import torch
from torch import Tensor


def launch(processes: int, args: list[str]) -> int:
    """Run `avt ARGS` in several processes that share one process group; return the exit code, 128 + n after signal n."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # longer than any save; PyTorch 2.11 does not read it: it kills what still runs 30 s after a signal
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id="avt",
        max_restarts=0,  # a restart would repeat a run that a signal stopped on purpose
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    )
    try:
        elastic_launch(config, sys.executable)("-m", "avtcli", *args)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return 128 - code if code < 0 else code
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
