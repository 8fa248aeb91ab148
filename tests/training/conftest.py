import pytest

from avtcli.training import monitor, pretrain, training_setup


@pytest.fixture(autouse=True)
def _logs_every_step_and_evaluates_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "LOG_EVERY", 1)
    monkeypatch.setattr(training_setup, "HELD_OUT_COUNT", 60)
    for name, count in (("BANK_COUNT", 120), ("QUERY_COUNT", 40)):
        monkeypatch.setattr(monitor, name, count)
