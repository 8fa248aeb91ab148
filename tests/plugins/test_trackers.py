"""Trackers: what their libraries read back, runs that continue, and what happens when one is missing or fails."""

import json
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

from avtcli.errors import AvtError
from avtcli.events import Event, Notice
from avtcli.storage.metrics_log import MetricsLog
from avtcli.training.run_log import Tracking
from tests.support import run_tiny

NAMES = ("tensorboard", "wandb", "mlflow")
STEPS = 9

Points = list[tuple[int, float]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, then nine from the start again: the checkpoint of the sixth was lost."""
    folder, events = tmp_path_factory.mktemp("trackers") / "r\u00e9sum\u00e9 it", list[Event]()
    run_tiny(folder, trackers=NAMES, max_steps=6, eval_every=1, on_event=events.append)
    shutil.rmtree(folder / "checkpoints" / "step-0000000006")
    run_tiny(folder, trackers=NAMES, eval_every=1, resume=True, on_event=events.append)
    assert [event for event in events if isinstance(event, Notice) and "the tracker" in event.text] == []
    return folder


def logged(run: Path, name: str) -> Points:
    """The points of a figure in metrics.jsonl."""
    lines = MetricsLog(run / "metrics.jsonl").read()
    if name.startswith("eval/"):
        return [(line["step"], line["eval"][name[5:]]) for line in lines if "eval" in line]
    return [(line["step"], line[name]) for line in lines if name in line]


def wandb_records(path: Path) -> Iterator[Any]:
    """The records in a file of wandb: the framing of LevelDB's log, around messages of wandb's own protocol."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def wandb_points(run: Path, name: str) -> Points:
    points = []
    for path in sorted(run.glob("trackers/wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            points += [(row["step"], row[name])] if name in row else []
    return points


def mlflow_client(run: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient((run / "trackers" / "mlruns").as_uri())


def mlflow_runs(run: Path) -> list[Any]:
    client = mlflow_client(run)
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


@pytest.mark.parametrize("name", ["loss", "lr", "eval/mace_px", "eval/knn_top1"])
def test_every_figure_of_a_resumed_run_is_read_back_once(run: Path, name: str) -> None:
    expected = logged(run, name)
    assert [step for step, _ in expected] == ([1, 3, 6, 9] if name.startswith("eval/") else [*range(1, STEPS + 1)])

    events = EventAccumulator(str(run / "trackers" / "tensorboard"))
    events.Reload()
    (found,) = mlflow_runs(run)
    history = mlflow_client(run).get_metric_history(found.info.run_id, name)
    read = {
        "tensorboard": [(event.step, event.value) for event in events.Scalars(name)],
        "wandb": wandb_points(run, name),
        "mlflow": [(metric.step, metric.value) for metric in history],
    }
    for library, points in read.items():
        assert [step for step, _ in points] == [step for step, _ in expected], library
        assert [value for _, value in points] == pytest.approx([value for _, value in expected], rel=1e-5), library


def test_the_settings_are_read_back(run: Path) -> None:
    events = EventAccumulator(str(run / "trackers" / "tensorboard"))
    events.Reload()
    start = parse_session_start_info_plugin_data(events.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    assert (start.hparams["backbone.width"].number_value, start.hparams["backbone.name"].string_value) == (0.05, "nin")

    records = [record for path in run.glob("trackers/wandb/offline-run-*/*.wandb") for record in wandb_records(path)]
    sent = [item for record in records for item in record.run.config.update]
    kept = {item.key or item.nested_key[0]: item.value_json for item in sent}
    assert (json.loads(kept["backbone.width"]), json.loads(kept["backbone.name"])) == (0.05, "nin")
    assert len({record.run.run_id for record in records if record.HasField("run")}) == 1

    (found,) = mlflow_runs(run)
    assert (found.data.params["backbone.width"], found.data.params["backbone.name"]) == ("0.05", "nin")
    assert (found.info.run_name, found.info.status) == (run.name, "FINISHED")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_library_is_refused_before_anything_is_written(name: str, avt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    result = avt(f"pretrain -o backbone.width=0.05 --limit-train 40 --max-steps 1 --out run --tracker {name}")

    assert result.code == 2
    assert f"`pip install 'avtcli[{name}]'`" in result.stderr
    assert list(Path().iterdir()) == []


def test_a_service_that_refuses_a_figure_is_reported_once_and_the_next_run_has_its_own(tmp_path: Path) -> None:
    events: list[Event] = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with Tracking(["mlflow"], on_event=events.append) as tracking:
            tracking.start(tmp_path / name, {"seed": 0}, 0)
            tracking.log(1, {"loss": 0.5})
            if name == "a":
                tracking.log(2, {"no name, for mlflow?": 0.5})
                tracking.log(3, {"loss": 0.5})

    (notice,) = (event.text for event in events if isinstance(event, Notice))
    assert notice.startswith("the tracker 'mlflow' failed in log and is not used further: MlflowException")
    (found,) = mlflow_runs(tmp_path / "b")
    assert found.data.metrics == {"loss": 0.5}
    with pytest.raises(AvtError, match="Did you mean 'mlflow'"):
        Tracking(["mlflo"], on_event=events.append)
