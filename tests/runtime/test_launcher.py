"""The launcher's variables: which make one process of several, and that nothing else in the environment sets up a run."""

import os
from pathlib import Path

import pytest

from avtcli.errors import AvtError
from avtcli.events import Event, Notice
from avtcli.runtime.devices import build_accelerator
from avtcli.runtime.launcher import VARIABLES, Launch, is_first_to_report, must_launch, read_launch

TWO = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)


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
