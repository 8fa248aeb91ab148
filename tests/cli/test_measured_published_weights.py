"""`--init-from` of what measures: a backbone by name with the weights of a file, its random baseline, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from avtcli.config.components import Plugin
from avtcli.features.evaluation_target import load_target
from avtcli.models.weights import restore_encoder
from avtcli.runtime.devices import Context
from tests.support import Result

Avt = Callable[[str], Result]
ON = "--workers 0 --device cpu"


@pytest.fixture
def file() -> Path:
    """Weights of a small network of images of 3 channels, with a classifier."""
    torch.manual_seed(5)
    torch.save({"state_dict": timm.create_model("test_resnet", num_classes=7).state_dict()}, "own.pth")
    return Path("own.pth")


def test_the_network_has_the_weights_of_the_file(file: Path) -> None:
    target = load_target(None, backbone=Plugin(name="test_resnet"), init_from=file, context=Context(torch.device("cpu")))
    found, theirs = restore_encoder(target.source).backbone_model.state_dict(), torch.load(file)["state_dict"]

    assert len(found) > 20
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in found.items() if tensor.shape == theirs[name].shape)
    stem = next(name for name in found if found[name].shape != theirs[name].shape)
    torch.testing.assert_close(found[stem], theirs[stem].sum(1, keepdim=True))  # a grey image in each of 3 channels


def test_a_probe_states_the_file_and_has_random_weights_as_baseline(file: Path, avt: Avt) -> None:
    line = f"probe --backbone test_resnet --head knn --limit-train 60 --json {ON}"
    result, random = avt(f"{line} --init-from {file}"), avt(line)

    assert result.code == 0, result.stderr
    assert result.json["protocol"]["weights"] == f"init_from={file.absolute()}"
    assert len(result.json["baseline"]) == 1
    assert result.json["baseline"][0]["top1"] == random.json["baseline"][0]["top1"]
    text = " ".join(result.stderr.split())
    assert ": the whole backbone (" in text
    assert "first convolution converted from 3 to 1 channels; not used: " in text
    assert "start at random" not in text
    assert "that are random" not in text


def test_layers_whose_weights_the_file_lacks_are_named(file: Path, avt: Avt) -> None:
    weights = torch.load(file)["state_dict"]
    save_file({name: tensor for name, tensor in weights.items() if not name.startswith("layer4.")}, "part.safetensors")
    line = f"embed --backbone test_resnet --init-from part.safetensors {ON} --split test --layer"
    first, last = (" ".join(avt(f"{line} {layer} --out {layer}.npz").stderr.split()) for layer in ("layer1", "layer4"))

    assert "of the backbone's" in first
    assert "not layer4.0." in first
    assert "that are random" not in first
    assert "depend on weights that the file does not have, and that are random: backbone.model.layer4.0." in last


def test_weights_without_a_network_are_refused_with_the_way_out(file: Path, avt: Avt) -> None:
    way = "`--backbone NAME --init-from FILE`"
    for command in ("probe", "evaluate", "embed --out e.npz"):
        result = avt(f"{command} --init-from {file}")
        assert (result.code, "gives weights to a network that --backbone NAME names" in result.stderr) == (2, True), command
    save_file({"a": torch.ones(1)}, "a.safetensors")
    for line in (f"probe {file}", "embed a.safetensors --out e.npz", f"import {file}"):
        result = avt(line)
        assert (result.code, way in " ".join(result.stderr.split())) == (2, True), result.stderr
    both = avt(f"embed --backbone test_resnet -o backbone.pretrained=true --init-from {file} --out e.npz")
    assert (both.code, "leave one of them out" in both.stderr) == (2, True)
