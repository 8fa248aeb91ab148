"""`avt pretrain --dry-run` on a GPU: memory of the device, the speed of captured steps, and no random draw changed."""

import pytest
import torch

from avtcli.bench.dry_run import dry_run
from avtcli.config.resolution import resolve
from avtcli.errors import RunFailedError
from avtcli.events import Event, ignore
from avtcli.runtime.devices import memory_errors_explained
from avtcli.training.pretrain import pretrain

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CONFIG = {"backbone": {"width": 0.25}, "batch_size": 128, "limit_train": 1280, "eval_every": 0, "compile": False}


def test_the_time_of_a_captured_run_is_that_of_the_dry_run(tmp_path) -> None:
    config = resolve({**CONFIG, "epochs": 100}, recipe="default")
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    dry = dry_run(config, run=tmp_path / "run", resume=False, on_event=ignore)

    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert not (tmp_path / "run").exists()
    assert 5e6 < dry.memory_bytes < torch.cuda.get_device_properties(0).total_memory
    result = pretrain(config, run=tmp_path / "run", resume=False, on_event=ignore)
    assert dry.steps == result.steps == 1000
    assert 0.3 * result.seconds < dry.seconds < 1.3 * result.seconds  # which has start and end too


def test_a_batch_that_does_not_fit_is_a_message() -> None:
    with pytest.raises(RunFailedError, match="does not fit in memory"), memory_errors_explained():
        torch.empty(2**50, device="cuda")


def test_a_run_states_its_speed_after_the_capture(tmp_path) -> None:
    events: list[Event] = []
    pretrain(resolve({**CONFIG, "epochs": 10}, recipe="default"), run=tmp_path / "run", resume=False, on_event=events.append)

    assert len([event for event in events if "pairs/s: " in getattr(event, "text", "")]) == 1
