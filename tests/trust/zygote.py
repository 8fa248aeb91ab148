"""A process that has imported torch and avtcli, and forks one `avt` at each request: a run starts in milliseconds.

Requests and replies are lines of JSON on stdin and stdout; `harness.Zygote` writes and reads them. No tensor operation runs
before the fork.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import time
from typing import Any

PACKAGES = ("avtcli.training", "avtcli.data", "avtcli.storage", "avtcli.models", "avtcli.runtime", "avtcli.metrics")
PLUGINS = ("backbones.nin", "objectives.avt", "transforms.photometric", "datasets.fashion_mnist", "datasets.folder")
LATE = ("torch._dynamo", "tomli_w", "numpy.ctypeslib", "PIL.PngImagePlugin")
STOPPING = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)


def warm_up() -> None:
    """Import what a run imports, whatever the modules of a package are called."""
    import torch

    torch.set_num_threads(1)
    names = ["avtcli.cli.app", "avtcli.cli.pretrain", *LATE, *(f"avtplugins.{name}" for name in PLUGINS)]
    for package in PACKAGES:
        names += [module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.")]
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    importlib.import_module("avtcli.registry").listing()
    gc.collect()
    gc.freeze()


def serve() -> dict[str, Any] | None:
    """Fork a child for each request, one at a time; returns the request in the child, and none at the end of requests."""
    reply = os.dup(1)
    os.write(reply, b'{"ready": true}\n')
    while line := sys.stdin.buffer.readline():
        pid = os.fork()
        if not pid:
            os.close(reply)
            return dict(json.loads(line))
        os.write(reply, json.dumps({"pid": pid}).encode() + b"\n")
        _, status = os.waitpid(pid, 0)
        os.write(reply, json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode() + b"\n")
    return None


def become(request: dict[str, Any]) -> None:
    """Take on the session, folder, files, signals and limits that a request names."""
    os.setsid()
    terminal = request.get("terminal")
    if terminal:  # the first terminal that the leader of a session opens becomes its own
        for descriptor in (0, 1, 2):
            os.dup2(os.open(terminal, os.O_RDWR), descriptor)
    else:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), descriptor)
    os.closerange(3, 64)
    os.chdir(request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)
    for number in request.get("ignored", ()):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if "file_size" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], request["file_size"]))
    if request.get("traced"):
        wait_for_tracer()


def wait_for_tracer() -> None:
    """Wait until strace is attached, by calls that it is not asked to count."""
    status = os.open("/proc/self/status", os.O_RDONLY)
    while b"TracerPid:\t0" in os.pread(status, 4096, 0):
        time.sleep(0.002)
    time.sleep(0.05)
    os.close(status)


def main() -> None:
    """Serve, and in a child run the command as the console script does."""
    warm_up()
    request = serve()
    if request is None:
        return
    become(request)
    if "control" in request:
        importlib.import_module("tests.trust.harness").write_in_place(request["control"])
    sys.argv = ["avt", *request["args"]]
    importlib.import_module("avtcli.cli.app").main()


if __name__ == "__main__":
    main()
