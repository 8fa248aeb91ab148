"""Trackers: a broken one is reported once, and training goes on with the others."""

from collections.abc import Callable
from pathlib import Path

import pytest

from avtcli.bench.dry_run import dry_run
from avtcli.errors import AvtError
from avtcli.events import Event, Notice, ignore
from avtcli.training.run_log import Tracking
from tests.support import run_tiny, tiny_config

MODULE = """
from avtcli.contracts import Tracker

CALLS = []

class Recorder(Tracker):
    def __init__(self, name):
        self.name = name

    def start(self, run_dir, config, step):
        CALLS.append((self.name, "start", (run_dir / "trackers").is_dir(), step))

    def log(self, step, values):
        CALLS.append((self.name, "log", step, values))
        if self.name == "broken":
            raise ConnectionError("no route")

    def finish(self):
        CALLS.append((self.name, "finish"))

def recorder(name: str, /) -> Tracker:
    CALLS.append((name, "built"))
    return Recorder(name)
"""


def test_a_tracker_that_fails_is_reported_once_and_the_others_go_on(install: Callable[..., None], tmp_path: Path) -> None:
    install({"avtcli.trackers": {"recorder": "recorder_a:recorder"}}, recorder_a=MODULE)
    events: list[Event] = []
    with Tracking(["recorder:broken", "recorder:good"], on_event=events.append) as tracking:
        tracking.start(tmp_path, {"seed": 0}, 3)
        for step in (4, 5):
            tracking.log(step, {"loss": 0.5})

    import recorder_a

    assert [call for call in recorder_a.CALLS if call[0] == "good"] == [
        ("good", "built"),
        ("good", "start", True, 3),
        ("good", "log", 4, {"loss": 0.5}),
        ("good", "log", 5, {"loss": 0.5}),
        ("good", "finish"),
    ]
    assert len([call for call in recorder_a.CALLS if call[0] == "broken"]) == 3
    assert events == [Notice("the tracker 'recorder:broken' failed in log and is not used further: ConnectionError: no route")]


def test_a_run_that_fails_before_its_start_calls_no_tracker(install: Callable[..., None]) -> None:
    install({"avtcli.trackers": {"recorder": "recorder_b:recorder"}}, recorder_b=MODULE)
    with pytest.raises(ZeroDivisionError), Tracking(["recorder:good"], on_event=lambda event: None):
        raise ZeroDivisionError

    import recorder_b

    assert recorder_b.CALLS == [("good", "built")]


def test_an_unknown_tracker_is_refused_and_none_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(AvtError, match="No tracker is called 'nowhere'"):
        Tracking(["nowhere"], on_event=lambda event: None)
    Tracking([], on_event=lambda event: None).start(tmp_path, {}, 0)

    assert list(tmp_path.iterdir()) == []


def test_a_run_builds_its_trackers_once_and_a_dry_run_too(install: Callable[..., None], tmp_path: Path) -> None:
    install({"avtcli.trackers": {"recorder": "recorder_c:recorder"}}, recorder_c=MODULE)
    dry_run(tiny_config(trackers=("recorder:dry",), max_steps=1), run=None, resume=False, on_event=ignore)
    run_tiny(tmp_path / "run", trackers=("recorder:real",), max_steps=1)

    import recorder_c

    assert [name for name, what, *_ in recorder_c.CALLS if what == "built"] == ["dry", "real"]
    with pytest.raises(AvtError, match="No tracker is called 'nowhere'"):
        dry_run(tiny_config(trackers=("nowhere",)), run=None, resume=False, on_event=ignore)
