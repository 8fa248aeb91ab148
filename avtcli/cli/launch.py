"""The processes of `--processes`: this command line, started several times on this machine."""

import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from avtcli.cli.progress import plain_renderer
from avtcli.errors import RunFailedError
from avtcli.events import Notice
from avtcli.runtime.launcher import must_launch
from avtcli.runtime.signals import heeded_signals

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig


def start_processes(
    processes: int, *more: str, go_on: str = "Nothing was written: give the command again.", **restarts: Any
) -> None:
    """Run this command line, with more arguments, in that number of processes, and exit; nothing where they are running.

    `go_on` says how to go on after a failure; for `max_restarts` and `again` see `launch`.
    """
    if must_launch(processes):
        args = [*sys.argv[1:], *more]
        raise typer.Exit(launch(processes, args, go_on=go_on, **restarts))


def launch(processes: int, args: list[str], *, go_on: str, max_restarts: int = 0, again: Callable[[], list[str]] = list) -> int:
    """Run `avt ARGS` in several processes that share one process group; return the exit code, 128 + n after signal n.

    Where one of them was killed, by no signal that asks it to stop, others are started, at most `max_restarts` times: with the
    arguments that `again` returns, or if it returns none with the same ones. `go_on` says how to go on after a failure.

    Raises:
        RunFailedError: if one of them was killed, and the others were ended.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    config, restarts = _launch_config(processes), 0
    try:
        while True:
            try:
                elastic_launch(config, sys.executable)("-m", "avtcli", *args)
                return 0
            except ChildFailedError as error:
                rank, failure = min(error.failures.items(), key=lambda item: _order(item[1]))
            if failure.exitcode >= 0:
                return int(failure.exitcode)
            killed = f"Process {rank} of {processes} was ended by {signal.Signals(-failure.exitcode).name}."
            if restarts == max_restarts or -failure.exitcode in heeded_signals():
                raise RunFailedError(f"{killed} If memory ran out, give fewer --processes or --workers. {go_on}")
            restarts, args = restarts + 1, again() or args
            plain_renderer()(Notice(f"{killed} Restart {restarts} of {max_restarts}:\n  avt {shlex.join(args)}"))
    except SignalException as error:
        return 128 + int(error.sigval)


def _order(failure: "ProcessFailure") -> tuple[int, bool]:
    """By the second; in the same one, that a process was killed is why others failed. The launcher then ends by SIGTERM."""
    return failure.timestamp, failure.exitcode >= 0 or failure.exitcode == -signal.SIGTERM


def _launch_config(processes: int) -> "LaunchConfig":
    from torch.distributed.launcher.api import LaunchConfig

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what happened is reported here, in words
    # longer than any save; PyTorch 2.11 does not read it: it kills what still runs 30 s after a signal
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id="avt",
        max_restarts=0,  # a restart would repeat a run that a signal stopped on purpose
        signals_to_handle=",".join(signal.Signals(number).name for number in heeded_signals()),
    )
