"""Weights of other libraries: found below any prefix and key, converted as timm converts its own, and never run."""

import argparse
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from avtcli.errors import AvtError
from avtcli.events import Notice
from avtcli.models.initial_weights import load_matching
from avtcli.models.siamese import SiameseModel
from avtcli.training.training_setup import build_training_setup
from tests.support import tiny_config

RESNET = {"name": "timm:test_resnet"}


def network(backbone: dict[str, Any], **over: Any) -> SiameseModel:
    config = tiny_config(seed=9, backbone=backbone, **over)
    return build_training_setup(config, on_event=lambda event: None).net


def loaded(content: Any, net: SiameseModel) -> tuple[dict[str, Tensor], str]:
    """The bare network's weights after loading what torch.save wrote, and the notice."""
    torch.save(content, "weights.pth")
    return read("weights.pth", net)


def read(path: str, net: SiameseModel) -> tuple[dict[str, Tensor], str]:
    notices: list[str] = []
    load_matching(net, path, on_event=lambda event: notices.append(event.text) if isinstance(event, Notice) else None)
    return net.encoder.backbone_model.state_dict(), notices[0]


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return OrderedDict((prefix + name, tensor) for name, tensor in weights.items())


def other(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in weights.items()}


def moco(w: dict[str, Tensor]) -> Any:
    nets = {**prefixed("module.encoder_k.", other(w)), **prefixed("module.encoder_q.", w)}
    head = {"module.encoder_q.fc.0.weight": torch.zeros(4, 4), "module.queue": torch.zeros(8, 16)}
    return {"epoch": 200, "arch": "resnet", "state_dict": {**nets, **head}, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}


def dino(w: dict[str, Tensor]) -> Any:
    nets = {"student": prefixed("module.backbone.", other(w)), "teacher": prefixed("backbone.", w)}
    return {**nets, "args": argparse.Namespace(arch="vit_tiny", lr=0.1), "epoch": 3}


def solo_learn(w: dict[str, Tensor]) -> Any:
    return {"state_dict": {**prefixed("momentum_backbone.", other(w)), **prefixed("backbone.", w), "projector.0.bias": w["fc"]}}


LAYOUTS = {
    "": lambda w: w,
    "module.": lambda w: prefixed("module.", w),
    "state_dict.module.encoder_q.": moco,
    "teacher.backbone.": dino,
    "state_dict.backbone.": solo_learn,
    "network.": lambda w: {"network": w, "epoch": 1},
    "state_dict.model.net.": lambda w: {"state_dict": prefixed("model.net.", w)},
    "encoder.": lambda w: prefixed("encoder.", w),
}


@pytest.mark.parametrize("prefix", LAYOUTS)
def test_the_prefix_that_matches_most_names_is_found_and_reported(prefix: str) -> None:
    net = network(RESNET)
    theirs = {name: torch.rand_like(tensor.float()) for name, tensor in net.encoder.backbone_model.state_dict().items()}
    theirs |= {name: torch.tensor(7) for name in theirs if name.endswith("num_batches_tracked")}
    found, notice = loaded(LAYOUTS[prefix]({**theirs, "fc": torch.ones(3)}), net)

    assert {name: tensor.tolist() for name, tensor in found.items()} == {n: t.tolist() for n, t in theirs.items()}
    assert notice.endswith(f"; read without the prefix '{prefix}'") == bool(prefix), notice
    assert ": the whole backbone (" in notice


def test_torchvisions_weights_of_3_channels_give_timms_own_conversion() -> None:
    theirs = resnet18().state_dict()
    found, notice = loaded(theirs, network({"name": "timm:resnet18"}))
    torch.save(theirs, "checkpoint.pth")
    overlay = {"file": "checkpoint.pth", "num_classes": 1000, "input_size": (3, 224, 224)}
    expected = timm.create_model("resnet18", pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=0)

    assert expected.conv1.weight.shape == (64, 1, 7, 7)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())
    count = sum(tensor.is_floating_point() for tensor in expected.state_dict().values())
    assert notice == (
        f"weights of weights.pth: the whole backbone ({count} tensors); first convolution converted from 3 to 1 channels; "
        "avt's own heads start at random (log-variance, objective); not used: fc.bias, fc.weight"
    )


def test_position_embeddings_of_another_grid_give_timms_own_conversion() -> None:
    theirs = timm.create_model("test_vit", num_classes=5).state_dict()  # 160 px by 16: 10x10 cells and a class token
    net = network({"name": "timm:test_vit"}, augment={"resize": 64, "crop": 64})
    found, notice = loaded(prefixed("teacher.backbone.", theirs), net)
    torch.save(theirs, "checkpoint.pth")
    overlay = {"file": "checkpoint.pth", "num_classes": 5, "input_size": (3, 160, 160)}
    args = {"in_chans": 1, "img_size": 64, "num_classes": 0}
    expected = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay=overlay, **args)

    assert (theirs["pos_embed"].shape[1], expected.pos_embed.shape[1]) == (101, 17)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())
    assert "; position embeddings converted from 101 to 17 tokens; first convolution converted from 3 to 1 channels" in notice


def test_safetensors_files_have_prefixes_too() -> None:
    net = network(RESNET)
    theirs = {name: tensor + 1 for name, tensor in net.encoder.backbone_model.state_dict().items()}
    save_file(prefixed("module.backbone.", theirs), "weights.safetensors")
    found, notice = read("weights.safetensors", net)

    assert all(torch.equal(found[name], tensor) for name, tensor in theirs.items())
    assert "without the prefix 'module.backbone.'" in notice


class Touch:
    """A pickle that would make a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: Path(path).write_bytes(pickle.dumps(content))])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(write: Any) -> None:
    write({"state_dict": {"conv1.weight": torch.ones(2)}, "hook": Touch()}, "evil.pth")
    with pytest.raises(AvtError, match=r"evil\.pth (asks for|is not a checkpoint)"):
        read("evil.pth", network(RESNET))

    assert not Path("ran").exists()


def test_a_compressed_file_is_refused_before_it_is_unpacked() -> None:
    torch.save({"weight": torch.zeros(10**6)}, "plain.pth")
    with zipfile.ZipFile("plain.pth") as plain, zipfile.ZipFile("bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))

    assert Path("bomb.pth").stat().st_size < 50_000
    with pytest.raises(AvtError, match="it is compressed"):
        read("bomb.pth", network(RESNET))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.ones(3), {"a": {"b": torch.ones(2)}}, nn.ReLU().state_dict()])
def test_a_file_without_weights_of_the_backbone_is_refused(content: Any) -> None:
    with pytest.raises(AvtError, match=r"No weight of .* fits the backbone: its first is "):
        loaded(content, network(RESNET))


def test_a_dict_within_itself_is_read_once() -> None:
    net = network(RESNET)
    theirs: dict[str, Any] = {name: tensor + 1 for name, tensor in net.encoder.backbone_model.state_dict().items()}
    nested: dict[str, Any] = {"model": theirs}
    nested["again"] = nested
    found, _ = loaded(nested, net)

    assert all(torch.equal(found[name], tensor) for name, tensor in theirs.items())
