"""The speed that a run reports."""

from types import SimpleNamespace

import pytest

from avtcli.training import run_log


def test_the_time_of_an_evaluation_is_left_out_of_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "time", SimpleNamespace(monotonic=iter([100.0, 105.0]).__next__))
    log = object.__new__(run_log.LossLog)
    log.began = 90.0

    with log.pausing():
        pass

    assert log.began == 95.0
