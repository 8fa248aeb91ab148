"""A distribution outside of avt, installed from its own pyproject and used by name."""

import importlib.metadata
import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from avtcli import load_encoder
from tests.support import Result

FOLDER = Path(__file__).parent / "example_plugin"
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TINY = "-o backbone.channels=8 -o backbone.blocks=3 --limit-train 40 --batch-size 16 --eval-every 0"


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    try:
        importlib.metadata.distribution(PROJECT["name"])
    except importlib.metadata.PackageNotFoundError:
        pytest.fail("The example plugin is not installed. Install it: pip install -e tests/example_plugin", pytrace=False)


def test_the_plugins_of_its_pyproject_are_installed(avt: Callable[..., Result]) -> None:
    stated = {
        (group.removeprefix("avtcli.").removesuffix("s"), name, value)
        for group, entries in PROJECT["entry-points"].items()
        for name, value in entries.items()
    }
    listed = [plugin for plugin in avt("plugins list --json").json if plugin["distribution"] == PROJECT["name"]]

    assert {(plugin["kind"], plugin["name"], plugin["value"]) for plugin in listed} == stated
    assert {plugin["version"] for plugin in listed} == {PROJECT["version"]}


def test_it_is_pretrained_probed_and_exported_by_name(avt: Callable[..., Result]) -> None:
    pretrained = avt(f"pretrain --backbone stranger-net --objective stranger-laplace {TINY} --max-steps 2 --out run --json")
    probed = avt("probe run --layer block2,vector --limit-train 40 --epochs 1 --json")
    exported = avt("export run --layer vector --out vector.safetensors")

    assert (pretrained.code, pretrained.json["steps"]) == (0, 2), pretrained.stderr
    assert {result["layer"] for result in probed.json["results"]} == {"block2", "vector"}, probed.stderr
    assert exported.code == 0, exported.stderr
    assert load_encoder("vector.safetensors")(torch.zeros(2, 1, 32, 32)).shape == (2, 8)


def test_its_exporter_and_its_tracker_are_used_by_name(avt: Callable[..., Result]) -> None:
    avt(f"pretrain --backbone stranger-net {TINY} --max-steps 1 --out run --tracker stranger-csv")
    exported = avt("export run --format stranger-npz --json")
    refused = avt("export run --format stranger-npz --layer vector --out vector.npz")

    assert exported.json["file"] == "run/encoder.npz", exported.stderr
    assert exported.json["max_abs_diff"] < 1e-6
    assert (refused.code, "Take --format safetensors." in refused.stderr, Path("vector.npz").exists()) == (2, True, False)
    rows = Path("run/trackers/stranger.csv").read_text().split()
    logged = json.loads(Path("run/metrics.jsonl").read_text())
    assert rows[0] == "step,name,value"
    assert f"1,loss,{logged['loss']}" in rows


def test_a_run_stores_the_distribution_of_its_plugins(avt: Callable[..., Result]) -> None:
    avt(f"pretrain --backbone stranger-net --objective stranger-laplace {TINY} --max-steps 1 --out run")

    assert "avt-stranger" in Path("run/env.json").read_text(encoding="utf-8")


def test_its_options_are_checked_as_ours_are(avt: Callable[..., Result]) -> None:
    result = avt("pretrain --backbone stranger-net -o backbone.chanels=8 --dry-run")

    assert result.code == 2
    assert "'stranger-net' has no option 'chanels'. Did you mean 'channels'? Its options: blocks, channels" in result.stderr
