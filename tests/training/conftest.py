import pytest

from avtcli.training import monitor, pretrain


@pytest.fixture(autouse=True)
def _logs_every_step_and_evaluates_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "LOG_EVERY", 1)
    for name, count in (("MACE_COUNT", 40), ("BANK_COUNT", 120), ("QUERY_COUNT", 60)):
        monkeypatch.setattr(monitor, name, count)
