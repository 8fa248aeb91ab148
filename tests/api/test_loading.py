"""Loading of encoders and models."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import avtcli
from avtcli.events import Event
from avtcli.models.weights import open_weights

X = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_last_run_is_the_newest(tiny_run: Path) -> None:
    shutil.copytree(tiny_run, "runs/old")
    shutil.copytree(tiny_run, "runs/new")
    (Path("runs/old/config.toml")).touch()
    old, new = avtcli.load_encoder("last"), avtcli.load_encoder(Path("runs/new"))
    shutil.rmtree("runs/old/checkpoints")

    assert torch.equal(old(X), new(X))
    assert torch.equal(avtcli.load_model("last").encoder(X), new(X))
    assert avtcli.probe("last", head="knn", baseline=False, shots=2).run == "runs/new"


def test_a_run_is_opened_by_the_name_that_avt_runs_prints(tiny_run: Path) -> None:
    shutil.copytree(tiny_run, "runs/stop")
    Path("stop").mkdir()  # as a folder of images
    notices: list[Event] = []

    assert open_weights("stop", on_event=notices.append).run == Path("runs/stop")
    assert notices == []
    assert torch.equal(avtcli.load_encoder("stop")(X), avtcli.load_encoder(tiny_run)(X))


def test_an_encoder_returns_the_layer_that_was_asked_for(tiny_run: Path) -> None:
    encoder = avtcli.load_encoder(tiny_run, layer="conv1")
    whole = avtcli.load_encoder(tiny_run)

    assert encoder.layers == ("conv1", "conv2", "conv3", "conv4", "classifier")
    assert torch.equal(encoder(X), whole.features(X, ["conv1"])["conv1"])
    for name, features in whole.features(X, list(whole.layers)).items():
        assert torch.equal(avtcli.load_encoder(tiny_run, layer=name)(X), features), name
    with pytest.raises(avtcli.AvtError, match=r"no layer 'conv9'.*conv1, conv2"):
        avtcli.load_encoder(tiny_run, layer="conv9")


def test_the_backbone_model_is_the_bare_network(tiny_run: Path) -> None:
    encoder = avtcli.load_encoder(tiny_run)

    assert not [name for name in encoder.backbone_model.state_dict() if "log_var" in name or name.startswith("backbone")]
    assert encoder.backbone_model is encoder.backbone.bare()


def test_a_network_is_placed_on_the_device(tiny_run: Path) -> None:
    encoder = avtcli.load_encoder(tiny_run, device=torch.device("cpu"))
    assert {tensor.device.type for tensor in (*encoder.parameters(), *encoder.buffers())} == {"cpu"}
    for device in ("tpu", "cuda:77", ["cpu"]):
        with pytest.raises(avtcli.AvtError, match=re.escape(f"The device {str(device)!r} cannot be used here")):
            avtcli.load_model(tiny_run, device=device)


def test_images_as_they_are_loaded_go_through(tiny_run: Path) -> None:
    model = avtcli.load_model(tiny_run)
    levels = (X * 255).round().to(torch.uint8)
    mean, log_var = model(model.normalise(levels), model.normalise(levels.float() / 255))

    assert mean.shape == log_var.shape == (2, 16)
    with pytest.raises(avtcli.AvtError, match=r"found \(2, 32, 32, 1\): give images.permute\(0, 3, 1, 2\)"):
        model.normalise(levels.permute(0, 2, 3, 1))
    with pytest.raises(avtcli.AvtError, match=r"found ndarray: give torch.as_tensor\(images\)"):
        model.encoder(levels.numpy())
