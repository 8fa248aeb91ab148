"""The launcher's variables: which make one process of several, and that nothing else in the environment sets up a run."""

import os
from pathlib import Path

import pytest

from avtcli.errors import AvtError
from avtcli.events import Event, Notice
from avtcli.runtime.devices import build_accelerator
from avtcli.runtime.launcher import VARIABLES, Launch, first_host, is_first_to_report, must_launch, read_launch, tasks_of_node

TWO = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = [name for name in os.environ if name.startswith("SLURM_")]
    for name in (*VARIABLES, "TORCHELASTIC_ERROR_FILE", "CUDA_VISIBLE_DEVICES", *slurm):
        monkeypatch.setenv(name, "")  # so that what a test makes of it is taken back
        monkeypatch.delenv(name)


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launch(0, 1, 1)),
        ({"MASTER_ADDR": "host", "MASTER_PORT": "29500"}, Launch(0, 1, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Launch(0, 1, 1)),
        ({"RANK": "0", **TWO}, Launch(0, 2, 2)),
        ({"RANK": "5", **TWO, "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Launch(5, 8, 2)),  # two on each of four machines
    ],
)
def test_complete_variables_are_read(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Launch) -> None:
    set_variables(monkeypatch, variables)

    assert read_launch() == expected


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"RANK": "first"}, r"no number: RANK\. .*`unset RANK`"),
        ({"RANK": "-1", **TWO}, "no number: RANK"),
        ({"MASTER_PORT": "tcp://10.0.0.1:80"}, "no number: MASTER_PORT"),
        ({"WORLD_SIZE": "2"}, r"\(WORLD_SIZE=2\): RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT are missing"),
        ({"RANK": "3"}, "WORLD_SIZE is missing"),
        ({"RANK": "2", **TWO}, "they contradict each other"),
        ({"RANK": "0", **TWO, "LOCAL_WORLD_SIZE": "3"}, "they contradict each other"),
        ({"RANK": "0", **TWO, "LOCAL_RANK": "1"}, "they contradict each other"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "they contradict each other"),
    ],
)
def test_other_variables_are_one_error(monkeypatch: pytest.MonkeyPatch, avt, variables: dict[str, str], why: str) -> None:
    set_variables(monkeypatch, variables)
    with pytest.raises(AvtError, match=why):
        read_launch()
    result = avt("recipes list")

    assert (result.code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("processes", "variables", "expected"), [(1, {}, False), (2, {}, True), (2, {"RANK": "0", **TWO}, False)]
)
def test_processes_are_started_unless_a_launcher_has(
    monkeypatch: pytest.MonkeyPatch, processes: int, variables: dict[str, str], expected: bool
) -> None:
    set_variables(monkeypatch, variables)

    assert must_launch(processes) is expected


@pytest.mark.parametrize(("processes", "variables"), [(2, {"RANK": "0", "WORLD_SIZE": "1"}), (3, {"RANK": "0", **TWO})])
def test_left_over_variables_do_not_replace_the_processes_asked_for(
    monkeypatch: pytest.MonkeyPatch, avt, processes: int, variables: dict[str, str]
) -> None:
    set_variables(monkeypatch, variables)
    result = avt(f"pretrain --processes {processes} --dry-run")

    assert result.code == 2
    assert f"--processes {processes} starts its processes itself" in result.stderr
    assert "`unset RANK WORLD_SIZE" in result.stderr


TASK = {"SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_NODELIST": "gpu[017-019]"}
"""The last of the tasks of `srun --nodes=3 --ntasks=6`."""
STEP = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}


@pytest.mark.parametrize(
    ("more", "local_rank"),
    [
        (STEP, 1),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0,1"}, 1),
        (STEP | {"CUDA_VISIBLE_DEVICES": "3"}, 0),  # one GPU for each task, as --gpus-per-task gives it
        (STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}, 1),  # set in the batch file
    ],
)
def test_a_task_of_srun_is_one_of_several_processes(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, str], local_rank: int
) -> None:
    set_variables(monkeypatch, {**TASK, **more})

    assert read_launch() == Launch(5, 6, 2)
    assert os.environ["LOCAL_RANK"] == str(local_rank)
    assert os.environ["MASTER_ADDR"] == more.get("MASTER_ADDR", "gpu017")
    assert 1024 < int(os.environ["MASTER_PORT"]) < 32768
    assert os.environ["MASTER_PORT"] == more.get("MASTER_PORT", str(20_000 + (31 * 4711 + 2) % 10_000))


@pytest.mark.parametrize(
    ("variables", "notice"),
    [
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "6", "SLURM_NODELIST": "n1"}, True),  # the shell of salloc
        ({**TASK, "SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),  # the script of sbatch
        ({**TASK, "SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),
        ({**TASK, **STEP, "SLURM_STEP_NUM_TASKS": "1"}, False),  # `srun --ntasks=1` in a job of six
    ],
)
def test_a_job_of_slurm_without_srun_is_one_process(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], notice: bool
) -> None:
    set_variables(monkeypatch, variables)
    events: list[Event] = []
    build_accelerator("cpu", "fp32", on_event=events.append)

    assert read_launch() == Launch(0, 1, 1)
    assert "RANK" not in os.environ
    assert [event.text for event in events if isinstance(event, Notice)] == (
        ["Slurm allotted 6 tasks and this is one process on one machine: `srun avt ...` starts them all"] if notice else []
    )


def test_processes_that_torchrun_starts_in_a_task_of_srun_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, {**TASK, **STEP, "RANK": "0", **TWO})

    assert read_launch() == Launch(0, 2, 2)
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("a1,b[2-3]", "a1"),
        ("n[001-004,7]", "n001"),
        ("n[7,001-004],m", "n7"),
        ("rack[2-3]-n[10,12]x,z", "rack2-n10x"),
        ("gpu-a-1.cluster,gpu-b", "gpu-a-1.cluster"),
    ],
)
def test_the_first_host_of_slurms_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_the_tasks_of_a_node_of_slurms_list() -> None:
    assert [tasks_of_node("2(x3),1", node) for node in range(4)] == [2, 2, 2, 1]
    assert [tasks_of_node("4,8(x2)", node) for node in range(3)] == [4, 8, 8]


def test_processes_that_fail_alike_report_it_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reports = []
    for rank in range(3):
        (tmp_path / str(rank)).mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / str(rank) / "error.json"))
        reports.append((is_first_to_report("too few images"), is_first_to_report(f"of process {rank} alone")))

    assert reports == [(True, True), (False, True), (False, True)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER"),
        ("ACCELERATE_TORCH_DEVICE", "meta"),
        ("ACCELERATE_USE_FSDP", "true"),
        ("ACCELERATE_USE_MEGATRON_LM", "true"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
    ],
)
def test_the_environment_does_not_set_up_accelerate(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    events: list[Event] = []
    found = build_accelerator("cpu", "fp32", on_event=events.append)

    assert (found.gradient_accumulation_steps, found.num_processes, found.device.type) == (1, 1, "cpu")
    assert (found.distributed_type.value, found.state.dynamo_plugin.backend.value, found.mixed_precision) == ("NO", "NO", "no")
    assert [type(event) for event in events] == [Notice]
    assert events[0].text.endswith(f"the environment variables {name}")
    assert os.environ[name] == value


def test_a_single_process_of_a_launcher_needs_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
    events: list[Event] = []

    assert build_accelerator("cpu", "fp32", on_event=events.append).distributed_type.value == "NO"
    assert events == []
