import pytest

from avtcli.features import transformed_pairs
from avtcli.training import monitor, pretrain


@pytest.fixture(autouse=True)
def _logs_every_step_and_evaluates_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, count in (
        *((pretrain, "LOG_EVERY", 1), (transformed_pairs, "MACE_COUNT", 40)),
        *((monitor, "MACE_COUNT", 40), (monitor, "BANK_COUNT", 120), (monitor, "QUERY_COUNT", 60)),
    ):
        monkeypatch.setattr(module, name, count)
