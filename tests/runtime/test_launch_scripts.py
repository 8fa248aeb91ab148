"""The launch scripts run: against programs that do what Slurm's do, two machines that are one, and our own parser."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.test_readme import parse

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / ".github" / "launch"
SETTINGS = "--transform photometric --limit-train 40 --batch-size 16 --eval-every 0 --device cpu -o backbone.width=0.0625"
PROGRAMS = {
    "avt": f'exec {sys.executable} -m avtcli "$@"',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "scontrol": 'echo "$@" >> requeues; touch again',
    "sbatch": """
        export SLURM_PROCID=0 SLURM_LOCALID=0
        while rm -f again; "$@"; code=$?; [ -e again ]; do true; done
        exit $code
    """,
    "srun": """
        while [ "${1#--}" != "$1" ]; do shift; done
        export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2 SLURM_STEP_NODELIST=localhost
        SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
        SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
        echo $first $second > tasks
        wait $first; one=$?
        wait $second; two=$?
        exit $((one > two ? one : two))
    """,
}


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """The environment in which the scripts find the programs that they call."""
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"}
    return {**os.environ, **path}


def steps_of(run: Path) -> list[int]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_a_job_of_slurm_saves_queues_itself_again_and_goes_on_to_the_end(variables: dict[str, str]) -> None:
    variables |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2"}
    run = Path(f"runs/slurm-{os.getpid()}")
    command = ["sbatch", SCRIPTS / "slurm.sh", *SETTINGS.split(), "--epochs", "40", "--save-every", "0.0001"]
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as job:
        limit = time.monotonic() + 200
        while not list(run.glob("checkpoints/step-*[1-9]")) and job.poll() is None and time.monotonic() < limit:
            time.sleep(0.01)
        for task in Path("tasks").read_text().split():  # as Slurm does: to the tasks, not to the script
            os.kill(int(task), signal.SIGUSR1)
        _, stderr = job.communicate(timeout=200)

    assert job.returncode == 0, stderr
    assert Path("requeues").read_text() == f"requeue {os.getpid()}\n"
    assert stderr.count("Stopped by SIGUSR1") == 1
    assert steps_of(run) == list(range(1, 121))
    environment = json.loads((run / "env.json").read_text())
    assert [resumed["processes"] for resumed in environment["resumed"]] == [2]
    assert 0 < environment["resumed"][0]["step"] < 120


def test_slurm_signals_the_tasks_before_the_end_and_may_queue_the_job_again() -> None:
    asked = re.findall(r"^#SBATCH (\S+)", (SCRIPTS / "slurm.sh").read_text(), re.MULTILINE)

    assert {"--requeue", "--signal=USR1@120", "--open-mode=append"} <= set(asked)
    assert 128 + signal.SIGUSR1 == 138  # the code after which the script queues the job again


@pytest.mark.slow
def test_two_machines_without_a_scheduler_share_a_run(variables: dict[str, str]) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        variables |= {"HEAD": "localhost", "NODES": "2", "PROCESSES": "1", "PORT": str(found.getsockname()[1])}
    command = [SCRIPTS / "torchrun.sh", *SETTINGS.split(), "--max-steps", "3", "--out", "run"]
    machines = [subprocess.Popen(command, env={**variables, "NODE": node}, stderr=-1, text=True) for node in "01"]
    ended = [machine.communicate(timeout=300)[1] for machine in machines]

    assert [machine.returncode for machine in machines] == [0, 0], ended
    assert json.loads(Path("run/env.json").read_text())["processes"] == 2
    assert steps_of(Path("run")) == [1, 2, 3]


def test_the_manifest_of_kubernetes_is_one_run_that_goes_on_where_pods_are_replaced() -> None:
    yaml: Any = pytest.importorskip("yaml")
    spec = yaml.safe_load((SCRIPTS / "pytorchjob.yaml").read_text())["spec"]
    master, worker = (spec["pytorchReplicaSpecs"][name] for name in ("Master", "Worker"))
    (container,) = master["template"]["spec"]["containers"]
    start, resumption = (re.findall(rf"set -- (.*{word}.*)", container["command"][-1]) for word in ("--out", "--resume"))

    assert master == worker
    assert int(spec["nprocPerNode"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert 'exec torchrun -m avtcli pretrain "$@"' in container["command"][-1]
    assert master["restartPolicy"] == "OnFailure"
    assert master["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in master["template"]["spec"]["volumes"]}
    for (line,) in (start, resumption):
        parse(f"avt pretrain {line}")
    assert subprocess.run(["sh", "-n", "-c", container["command"][-1]], check=False).returncode == 0
