"""Processes of a launch whose others do not come: they say so, give up, and end at a signal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORKS = r"""
import importlib, json, os, signal, socket, time
from datetime import timedelta
from avtcli.cli.app import app
from avtcli.runtime import launcher
importlib.import_module("avtcli.training.pretrain")
launcher.QUIET_SECONDS = 0.2

def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])

def start(name, rank, port, patience=100.0):
    child = os.fork()
    if child:
        return name, child
    os.environ |= {"RANK": rank, "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    launcher.PATIENCE = timedelta(seconds=patience)
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), 2)
    try:
        app(["pretrain", "--device", "cpu", "--out", "run"], prog_name="avt")
    except SystemExit as ended:
        os._exit(ended.code)

def wait_for(child, text):
    limit = time.monotonic() + 100
    while not os.path.exists(child[0]) or text not in open(child[0]).read():
        assert time.monotonic() < limit, child
        time.sleep(0.05)

def end(child, number=0):
    if number:
        os.kill(child[1], number)
    code = os.waitstatus_to_exitcode(os.waitpid(child[1], 0)[1])
    found[child[0]] = [code, open(child[0]).read()]

found, port, other = {}, free_port(), free_port()
end(start("patient", "0", port, patience=1.0))
one, last = start("first", "0", port), start("last", "3", other)
wait_for(one, "waiting")
end(start("same port", "0", port))
end(start("third", "3", port, patience=2.0))
left = start("left", "3", port)
time.sleep(2)  # it is there in less
end(one, signal.SIGINT)
end(left)
wait_for(last, "waiting")
end(last, signal.SIGTERM)
print(json.dumps(found | {"ports": [port, other]}))
"""
"""What becomes of processes of a launch of four that are forked, none of which all the others join."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    folder = tmp_path_factory.mktemp("alone")
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")])}
    launch = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "a.invalid"}
    command = [sys.executable, "-m", "avtcli", "pretrain", "--device", "cpu", "--out", "run"]
    lost = subprocess.Popen(command, cwd=folder, env=variables | launch | {"MASTER_PORT": "1"}, stderr=-1, text=True)
    command = [sys.executable, "-c", FORKS]
    ended = subprocess.run(command, cwd=folder, env=variables, stdout=-1, text=True, timeout=300, check=True)
    assert lost.stderr is not None
    said = lost.stderr.readline()
    lost.terminate()
    said += lost.communicate(timeout=60)[1]
    assert not (folder / "run").exists()
    return {**json.loads(ended.stdout), "lost": [lost.returncode, said]}


def test_a_process_that_waits_says_so_once_and_gives_up_with_a_way_out(found: dict[str, list]) -> None:
    code, stderr = found["patient"]
    said, error = stderr.splitlines()

    assert code == 1
    assert said == f"waiting for 3 of 4 processes (1, 2, 3) at 127.0.0.1:{found['ports'][0]}"
    assert error.startswith("error: 3 of 4 processes (1, 2, 3) did not come to 127.0.0.1:")
    assert "MASTER_ADDR and MASTER_PORT" in error


@pytest.mark.parametrize(
    ("name", "code", "awaited", "port", "last"),
    [
        ("first", 130, "3 of 4 processes (1, 2, 3)", 0, "Stopped by SIGINT; nothing was written."),
        ("last", 143, "process 0 of 4", 1, "Stopped by SIGTERM; nothing was written."),
    ],
)
def test_a_signal_ends_a_process_that_waits(
    found: dict[str, list], name: str, code: int, awaited: str, port: int, last: str
) -> None:
    assert found[name] == [code, f"waiting for {awaited} at 127.0.0.1:{found['ports'][port]}\n{last}\n"]


def test_of_a_machine_that_is_not_known_one_line_is_said(found: dict[str, list]) -> None:
    assert found["lost"] == [143, "waiting for process 0 of 2 at a.invalid:1\nStopped by SIGTERM; nothing was written.\n"]


def test_of_those_that_wait_for_others_the_first_alone_says_so(found: dict[str, list]) -> None:
    code, stderr = found["third"]

    assert code == 1
    assert stderr.startswith("error: 2 of 4 processes (1, 2) did not come")


def test_a_process_whose_first_one_ends_does_not_wait_for_it(found: dict[str, list]) -> None:
    code, stderr = found["left"]

    assert code == 1
    error = stderr.splitlines()[-1]  # after warnings of PyTorch's own
    assert error.startswith(f"error: A process that was at 127.0.0.1:{found['ports'][0]} ended, or cannot be reached (Dist")
    assert "Traceback" not in stderr


def test_a_second_launch_on_the_same_port_is_refused(found: dict[str, list]) -> None:
    code, stderr = found["same port"]

    assert code == 2
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith(f"error: Process 0 cannot use 127.0.0.1:{found['ports'][0]} (DistNetworkError: ")
    assert "MASTER_PORT a port that is free there" in stderr
