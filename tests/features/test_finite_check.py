"""Features that are not finite: refused with a count by every command that measures them."""

import math
from pathlib import Path

import pytest
import torch

from avtcli.errors import RunFailedError
from avtcli.features.finite_check import FiniteCheck
from avtcli.models.weights import open_weights, restore_model
from avtcli.storage.checkpoints import save_checkpoint
from avtcli.storage.run_folders import create_run


def test_images_are_counted_over_batches_and_layers() -> None:
    check = FiniteCheck()
    for first in (0, 3):
        maps, vectors = torch.zeros(3, 2, 4, 4), torch.zeros(3, 5)
        vectors[0, 1:3] = math.nan  # two columns of one image
        vectors[1, 4] = math.inf if first else 0.0
        check.count({"conv1": maps, "conv2": vectors})
    with pytest.raises(RunFailedError, match=r"layer 'conv2' are infinite or NaN for 3 of 6 images"):
        check.finish()


def test_large_finite_features_pass() -> None:
    check = FiniteCheck()
    check.count({"conv1": torch.full((2, 9), torch.finfo(torch.float32).max)})
    check.finish()


@pytest.fixture(scope="module")
def overflowing(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with finite weights whose code overflows."""
    source = open_weights(tiny_run)
    net, run = restore_model(source), tmp_path_factory.mktemp("runs") / "overflowing"
    torch.nn.init.constant_(net.encoder.backbone.conv2[2][1].weight, 3e38)
    create_run(run, (tiny_run / "config.toml").read_text(), {})
    about = {key: value for key, value in source.about.items() if key not in ("format", "step")}
    save_checkpoint(run / "checkpoints", 9, model=net.state_dict(), state={}, about=about)
    return run


@pytest.mark.parametrize(
    "line",
    [
        "probe {} --limit-train 40 --no-baseline --epochs 1",
        "probe {} --limit-train 40 --no-baseline --epochs 1 --augment",
        "probe {} --limit-train 40 --no-baseline --epochs 1 --finetune",
        "probe {} --limit-train 40 --no-baseline --epochs 1 --head mlp2",
        "probe {} --limit-train 40 --no-baseline --head knn",
        "probe {} --limit-train 40 --no-baseline --head ridge",
        "embed {} --out x.npz",
        "evaluate {} --count 20",  # the decoder
        "evaluate {} --count 20 --transform rotation",  # ridge alone
    ],
)
def test_every_command_that_measures_features_refuses_them(avt, overflowing: Path, line: str) -> None:
    result = avt(line.format(overflowing))
    said = result.stderr.splitlines()[-1]

    assert (result.code, result.stdout) == (1, "")
    assert said.startswith("error: The features of layer '")
    assert "are infinite or NaN for " in said
    assert not Path("x.npz").exists()
