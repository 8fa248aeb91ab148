"""Each format of `avt export`, loaded by its own library: the same features, for another batch size than in the export.

That the printed lines load a file in a fresh process is a conformance check of the exporters (tests/plugins/test_battery.py).
It exports no timm model, so this file does.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config
from torchvision.transforms.functional import to_pil_image

from avtcli import load_encoder, load_model
from avtcli.data.images import resize
from avtcli.exporting.export import compare_loaded
from avtcli.geometry.cropping import centre_crop
from avtplugins.backbones.timm import VECTOR_TAP
from tests.support import Result, run_tiny

SEVEN = torch.randn(7, 1, 32, 32, generator=torch.Generator().manual_seed(5))


pytestmark = pytest.mark.usefixtures("exports_load_here")


def features(run: Path, layer: str) -> torch.Tensor:
    with torch.no_grad():
        return load_encoder(run).features(SEVEN, [layer])[layer]


def load_program(path: str) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # torch 2.11, in its own code
        return torch.export.load(path)


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def timm_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    args = {"patch_size": 4, "depth": 2} if request.param == "test_vit" else {}
    folder = tmp_path_factory.mktemp("runs") / request.param
    backbone = {"name": f"timm:{request.param}", "args": args}
    return run_tiny(folder, backbone=backbone, augment={"resize": 44, "crop": 32}, batch_size=4, max_steps=1)


def test_a_state_dict_has_the_networks_own_names_and_all_its_weights(avt: Callable[..., Result], tiny_run: Path) -> None:
    result = avt(f"export {tiny_run} --format torch --layer conv3 --out net.pt --json")
    weights, network = torch.load("net.pt", weights_only=True), load_encoder(tiny_run).backbone_model
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    network.load_state_dict(weights, strict=True)
    with torch.no_grad():
        _, taps = network(SEVEN, lambda mean: mean, ["conv3", "conv4"])

    assert result.json["max_abs_diff"] < 1e-6
    for layer, found in taps.items():
        assert torch.equal(found, features(tiny_run, layer))


def test_timm_loads_its_folder_by_itself_stem_and_all(avt: Callable[..., Result], timm_run: Path) -> None:
    result = avt(f"export {timm_run} --format timm --out folder --json")
    model = timm.create_model("local-dir:folder", pretrained=True).eval()
    classifier = timm.create_model("local-dir:folder", pretrained=True, num_classes=10).eval()
    prepared, spec = resolve_data_config(model=model), load_model(timm_run)
    own = load_encoder(timm_run).backbone_model.state_dict()
    names: dict[str, Any] = {}
    text = Path("folder/README.md").read_text()
    exec(text.split("```python")[-1].split("```")[0], names)

    assert (result.code, sorted(path.name for path in Path("folder").iterdir())) == (
        0,
        ["README.md", "config.json", "model.safetensors"],
    )
    with torch.no_grad():
        assert torch.equal(model(SEVEN), load_encoder(timm_run).encode(SEVEN)[0])
        assert classifier(SEVEN).shape == (7, 10)
        torch.testing.assert_close(names["encoder"](SEVEN), load_encoder(timm_run)(SEVEN))  # the map of the code
    assert f"is another layer: {load_encoder(timm_run).output}." in text
    assert {name: tensor.tolist() for name, tensor in model.state_dict().items()} == {n: t.tolist() for n, t in own.items()}
    assert tuple(prepared["input_size"]) == (1, 32, 32)
    assert prepared["mean"] == pytest.approx(spec.encoder.pixel_mean.flatten().tolist())
    assert prepared["std"] == pytest.approx(spec.encoder.pixel_std.flatten().tolist())
    picture = torch.arange(60 * 80, dtype=torch.uint8).reshape(1, 60, 80)
    levels = create_transform(**prepared, normalize=False)(to_pil_image(picture))
    assert (levels.int() - centre_crop(resize(picture, 44, name=""), crop=(32, 32)).int()).abs().max() <= 1


@pytest.mark.parametrize("layer", [None, "conv1"])
def test_onnxruntime_gives_the_same_features(avt: Callable[..., Result], tiny_run: Path, layer: str | None) -> None:
    result = avt(f"export {tiny_run} --format onnx --out net.onnx --json {f'--layer {layer}' if layer else ''}")
    model = onnx.load("net.onnx")
    session = onnxruntime.InferenceSession("net.onnx")
    (found,) = session.run(["features"], {"images": SEVEN.numpy()})
    names: dict[str, object] = {}
    exec(result.json["load_with"], names)

    assert result.code == 0, result.stderr
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(found, features(tiny_run, layer or "conv2").numpy(), atol=1e-4)
    assert session.get_inputs()[0].shape == ["batch", 1, 32, 32]
    np.testing.assert_array_equal(names["encoder"](SEVEN.numpy()), found)
    assert not any("avt" in line for line in result.json["load_with"].split("; ")), result.json["load_with"]
    kept = " ".join(weight.name for weight in model.graph.initializer)
    assert ("conv1" in kept, "conv2" in kept, "conv3" in kept) == (True, layer is None, False)
    assert str(Path(sys.prefix)).encode() not in Path("net.onnx").read_bytes()


@pytest.mark.parametrize("layer", [None, "conv1"])
def test_torch_export_gives_the_same_features(avt: Callable[..., Result], tiny_run: Path, layer: str | None) -> None:
    result = avt(f"export {tiny_run} --format pt2 --out net.pt2 --json {f'--layer {layer}' if layer else ''}")
    program = load_program("net.pt2")

    assert result.code == 0, result.stderr
    with torch.no_grad():
        torch.testing.assert_close(program.module()(SEVEN), features(tiny_run, layer or "conv2"))
    assert {name.split(".")[1] for name in program.state_dict} == {"conv1", *([] if layer else ["conv2"])}
    assert str(Path(sys.prefix)).encode() not in Path("net.pt2").read_bytes()


@pytest.mark.parametrize("timm_run", ["test_vit"], indirect=True)
def test_a_transformer_is_cut_at_a_layer_too(avt: Callable[..., Result], timm_run: Path) -> None:
    encoder = load_encoder(timm_run)
    layer = encoder.layers[0]
    result = avt(f"export {timm_run} --format pt2 --layer {layer} --out net.pt2")

    assert result.code == 0, result.stderr
    with torch.no_grad():
        torch.testing.assert_close(load_program("net.pt2").module()(SEVEN), features(timm_run, layer))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--format timm", "holds models of timm, and this backbone is none. Take --format torch."),
        (
            "--format torch --layer conv2.log_var",
            "found the layer conv2.log_var. Take --format safetensors.",
        ),
        ("--format onnx --out net.pt2", "writes a file that ends in .onnx, found --out net.pt2. Give --out net.onnx."),
        ("--format timm --out net.pt", "writes a folder without an ending, found --out net.pt. Give --out net."),
        ("--format pt2 --layer conv9", "The backbone has no layer 'conv9'."),
    ],
)
def test_what_a_format_cannot_do_is_refused_with_one_that_can(
    avt: Callable[..., Result], tiny_run: Path, line: str, message: str
) -> None:
    before = sorted(tiny_run.iterdir())
    result = avt(f"export {tiny_run} {line}")

    assert (result.code, list(Path().iterdir()), sorted(tiny_run.iterdir())) == (2, [], before)
    assert message in result.stderr


@pytest.mark.parametrize("timm_run", ["test_resnet"], indirect=True)
def test_a_fresh_process_loads_timms_folder(avt: Callable[..., Result], timm_run: Path) -> None:
    result, encoder = avt(f"export {timm_run} --format timm --out folder --json"), load_encoder(timm_run)
    encoder.output = VECTOR_TAP

    assert compare_loaded(encoder, SEVEN, Path("folder"), [result.json["load_with"]])[0] == 0


@pytest.mark.parametrize("timm_run", ["test_resnet"], indirect=True)
def test_a_layer_inside_a_timm_model_is_refused_for_a_folder(avt: Callable[..., Result], timm_run: Path) -> None:
    result = avt(f"export {timm_run} --format timm --layer {load_encoder(timm_run).layers[0]} --out folder")

    assert (result.code, list(Path().iterdir())) == (2, [])
    assert "holds whole models, found the layer" in result.stderr
    assert "Take --format safetensors, onnx or pt2." in result.stderr


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_extra_is_named(
    avt: Callable[..., Result], tiny_run: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = avt(f"export {tiny_run} --format onnx --out net.onnx")

    assert (result.code, list(Path().iterdir())) == (2, [])
    assert "pip install 'avtcli[onnx]'" in result.stderr


def test_an_exported_file_is_exported_again_in_another_format(avt: Callable[..., Result], tiny_run: Path) -> None:
    avt(f"export {tiny_run} --out a.safetensors --layer conv3")
    result = avt("export a.safetensors --format torch --out a.pt --json")

    assert result.json["step"] == 9
    names: dict[str, object] = {}
    exec(result.json["load_with"], names)
    with torch.no_grad():
        assert torch.equal(names["encoder"](SEVEN), features(tiny_run, "conv3"))
    assert json.loads(names["weights"].avt)["model"]["layer"] == "conv3"
