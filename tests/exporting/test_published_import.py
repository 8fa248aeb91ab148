"""`avt import`: published checkpoints, built by the golden formula, become runs that give the golden numbers."""

import json
import os
import pickle
import signal
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from avtcli import load_encoder, load_model
from avtcli.cli.import_ import import_
from avtcli.config.resolution import resolve
from avtcli.errors import AvtError, SignalReceived
from avtcli.events import Saved, ignore
from avtcli.exporting import published_import
from avtcli.exporting.published_import import ImportResult, import_checkpoint
from avtcli.storage.checkpoints import load_newest
from tests.parity.models import golden_of
from tests.parity.tolerances import assert_near
from tests.parity.weights import image_pair, released_state_dict


@pytest.fixture(scope="module")
def nin() -> dict[str, Tensor]:
    return released_state_dict("nin")


def cifar_layout(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return OrderedDict((f"module.{name}", tensor) for name, tensor in weights.items())


def imagenet_layout(weights: dict[str, Tensor]) -> dict[str, Any]:
    return {"epoch": 7, "network": OrderedDict(weights)}


LAYOUTS = {"state_dict": cifar_layout, "epoch_and_network": imagenet_layout}


def read(folder: Path) -> ImportResult:
    return import_checkpoint(folder / "net.pth", backbone=None, out=folder / "run", on_event=ignore)


def imported(content: Any, folder: Path, *, backbone: str | None = None, **how: Any) -> ImportResult:
    torch.save(content, folder / "net.pth", **how)
    return import_checkpoint(folder / "net.pth", backbone=backbone, out=folder / "run", on_event=ignore)


def assert_golden(run: str, backbone: str) -> None:
    golden = golden_of(backbone)
    model, encoder = load_model(run), load_encoder(run)
    assert encoder.noise_scale == model.encoder.noise_scale
    with torch.no_grad():
        mean, log_var = model(*image_pair(golden["batch"], golden["size"]))
    assert log_var is not None
    assert_near("outputs", "mu", mean, golden["eval_noise_zeros"]["mu"])
    raw = torch.tensor(golden["eval_noise_zeros"]["logvar_raw"], dtype=torch.float64)
    assert_near("outputs", "log_var", log_var, (raw / 1000).tolist())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_imported_nin_gives_the_golden_numbers(nin, tmp_path, layout):
    result = imported(LAYOUTS[layout](nin), tmp_path)
    assert (result.backbone, result.layout) == ("nin", layout)
    assert (result.matched, result.missing, result.unexpected) == (list(nin), [], [])
    assert result.epoch == (7 if layout == "epoch_and_network" else None)
    assert_golden(result.run, "nin")


def test_the_file_format_before_pytorch_1_6_is_read(nin, tmp_path):
    result = imported(cifar_layout(nin), tmp_path, _use_new_zipfile_serialization=False)
    assert_golden(result.run, "nin")


def python_2_pickler() -> Any:
    """Pickler that writes names as byte strings and an OrderedDict as a list of lists, as the published files have them."""
    base: Any = vars(pickle)["_Pickler"]  # the one written in Python, whose opcodes can be chosen

    def save_str(self: Any, text: str) -> None:
        self.write(pickle.SHORT_BINSTRING + bytes([len(text)]) + text.encode())
        self.memoize(text)

    def reducer_override(self: Any, value: Any) -> Any:
        if isinstance(value, OrderedDict):
            return OrderedDict, ([list(item) for item in value.items()],)
        return NotImplemented

    members = {"dispatch": {**base.dispatch, str: save_str}, "reducer_override": reducer_override}
    return type("Python2Pickler", (base,), members)


def test_a_file_that_python_2_wrote_is_read(nin, tmp_path):
    pickler = python_2_pickler()
    module = types.SimpleNamespace(
        __name__="pickle", Pickler=pickler, dump=lambda value, file, protocol: pickler(file, protocol).dump(value)
    )
    result = imported(cifar_layout(nin), tmp_path, pickle_module=module, _use_new_zipfile_serialization=False)
    assert b"U\x10module.fc.weight" in (tmp_path / "net.pth").read_bytes()
    assert result.matched == list(nin)
    assert_golden(result.run, "nin")


def test_the_run_has_the_recipes_settings_and_the_files_epoch_as_its_step(nin, tmp_path):
    result = imported(imagenet_layout(nin), tmp_path)
    run = Path(result.run)
    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint.about["step"] == 7
    assert checkpoint.about["imported"] == {"file": "net.pth", "layout": "epoch_and_network", "epoch": 7}
    assert resolve({}, recipe=str(run / "config.toml")) == resolve({}, recipe="cifar10-nin")
    spec = checkpoint.about["model"]
    assert (spec["channels"], spec["size"], spec["mean"][0], spec["std"][0]) == (3, [32, 32], 0.4914, 0.2023)
    assert json.loads((run / "env.json").read_text())["data_fingerprint"] == "unknown"


def test_without_an_epoch_and_a_folder_it_is_step_0_below_runs(nin):
    torch.save(cifar_layout(nin), "net.pth")
    events: list[Any] = []
    result = import_checkpoint(Path("net.pth"), backbone="nin", out=None, on_event=events.append)
    assert Path(result.run).parent == Path("runs")
    assert "-import-nin" in result.run
    assert events == [Saved(Path(result.run) / "checkpoints" / "step-0000000000")]


def test_a_folder_that_exists_is_not_overwritten(nin, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(AvtError, match="exists already and is not overwritten"):
        imported(cifar_layout(nin), tmp_path)


def test_a_signal_before_the_weights_are_saved_leaves_no_run(nin, tmp_path, monkeypatch):
    def stop(*args: Any, **kwargs: Any) -> None:
        raise SignalReceived(signal.SIGTERM)

    monkeypatch.setattr(published_import, "save_checkpoint", stop)
    with pytest.raises(SignalReceived, match="SIGTERM"):
        imported(cifar_layout(nin), tmp_path)
    assert not (tmp_path / "run").exists()


def test_half_precision_weights_become_single(nin, tmp_path):
    halves = {name: t.half() if t.is_floating_point() else t for name, t in nin.items()}
    result = imported(halves, tmp_path)
    head = load_model(result.run).objective.decoder.mean_head.weight
    assert head.dtype == torch.float32
    assert torch.equal(head, nin["fc.weight"].half().float())


class Canary:
    """A pickle that makes a file when it is loaded by the usual means."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["value", "top level"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(nin, tmp_path, zipped, place):
    canary = Canary(tmp_path / "canary")
    content = canary if place == "top level" else {**cifar_layout(nin), "module.more": canary}
    with pytest.raises(AvtError, match=r"net\.pth asks for posix\.mkdir, .* nothing in it was run"):
        imported(content, tmp_path, _use_new_zipfile_serialization=zipped)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pth"]
    torch.load(tmp_path / "net.pth", weights_only=False)
    assert (tmp_path / "canary").is_dir()  # the trap was live


@pytest.mark.parametrize("content", [pickle.dumps(Canary(Path("canary"))), b"<html>404 Not Found</html>\n"])
def test_a_bare_pickle_or_a_text_file_is_refused_and_runs_nothing(tmp_path, content):
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(AvtError, match=r"net\.pth is not a checkpoint that torch\.save wrote"):
        read(tmp_path)
    assert sorted(path.name for path in Path().iterdir()) == sorted(path.name for path in tmp_path.iterdir()) == ["net.pth"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_that_was_cut_short_is_refused(nin, tmp_path, zipped, share):
    torch.save(cifar_layout(nin), tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "net.pth").read_bytes()
    (tmp_path / "net.pth").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(AvtError, match=r"net\.pth is not a checkpoint that torch\.save wrote, or is incomplete"):
        read(tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AvtError, match=r"net\.pth cannot be read: No such file"):
        read(tmp_path)


RESNET = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (None, r"unexpected: conv1\.weight; the first missing: Alexnet\..*\.weight \(alexnet\) or nin\..*Block1_.* \(nin\)"),
        (
            "nin",
            r"no complete 'nin': of 82 names 80 are missing \(first: nin\._feature_blocks\.0\.Block1_.*\), "
            r"1 are unexpected \(first: conv1\.weight\)",
        ),
    ],
)
def test_another_network_is_refused_with_the_first_names_that_differ(tmp_path, backbone, expected):
    with pytest.raises(AvtError, match=expected):
        imported(RESNET, tmp_path, backbone=backbone)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"fc2.bias": None}, r"1 are missing \(first: fc2\.bias\), 0 are unexpected \(first: none\)"),
        ({"fc3.bias": torch.zeros(8)}, r"0 are missing \(first: none\), 1 are unexpected \(first: fc3\.bias\)"),
        ({"fc.weight": torch.zeros(6, 384)}, r"fc\.weight is float32 \(6, 384\), expected float32 \(8, 384\)"),
        ({"fc.bias": torch.zeros(8, dtype=torch.int64)}, r"fc\.bias is int64 \(8,\), expected float32 \(8,\)"),
    ],
    ids=["missing", "unexpected", "another shape", "integers"],
)
def test_names_and_shapes_that_differ_are_refused(nin, tmp_path, change, expected):
    weights = {name: tensor for name, tensor in {**nin, **change}.items() if tensor is not None}
    with pytest.raises(AvtError, match=expected):
        imported(weights, tmp_path)


def test_an_epoch_that_is_no_number_is_refused(nin, tmp_path):
    with pytest.raises(AvtError, match="states the epoch 'last', expected an integer of 0 or more"):
        imported({"epoch": "last", "network": nin}, tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"model": {}, "optimizer": {}}, "a dict of 'model', 'optimizer'"),
        ({"epoch": 3, "network": {}}, "a dict of 'epoch', 'network'"),
        ({}, "a dict of nothing"),
        ([1, 2], "a list"),
        ({1: torch.zeros(2)}, "a dict of 1"),
    ],
)
def test_content_of_neither_layout_is_refused(tmp_path, content, found):
    with pytest.raises(AvtError, match=f"holds {found}, expected tensors by name, or a dict of 'epoch' and 'network'"):
        imported(content, tmp_path)


@pytest.fixture
def command(nin, tmp_path):
    """Call `avt import` on a published NIN: arguments -> what it prints on stdout."""
    torch.save(cifar_layout(nin), tmp_path / "net.pth")
    app = typer.Typer()
    app.command()(import_)

    def call(*arguments: str) -> str:
        ended = CliRunner().invoke(app, [str(tmp_path / "net.pth"), "--out", str(tmp_path / "run"), *arguments])
        assert ended.exit_code == 0, ended.output
        return ended.stdout

    return call


def test_the_command_prints_the_counts_and_the_next_command(command, tmp_path):
    assert command().splitlines() == [
        f"run       {tmp_path}/run",
        "backbone  nin",
        "layout    state dict",
        "names     82 matched, 0 missing, 0 unexpected",
        "next:",
        f"  avt probe {tmp_path}/run",
    ]


def test_the_command_prints_one_json_document(command, nin, tmp_path):
    assert json.loads(command("--json", "--backbone", "nin")) == {
        "run": f"{tmp_path}/run",
        "backbone": "nin",
        "layout": "state_dict",
        "matched": list(nin),
        "missing": [],
        "unexpected": [],
        "epoch": None,
    }


MEASURE = """
import os, resource, sys
from pathlib import Path
from avtcli.events import ignore
from avtcli.exporting.published_import import import_checkpoint
from avtcli import registry
registry.build("backbone", "nin", {"width": 0.1}, in_channels=1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for folder in map(Path, sys.argv[1:]):
    if not os.fork():
        before = peak()
        result = import_checkpoint(folder / "net.pth", backbone=None, out=folder / "run", on_event=ignore)
        print(peak() - before, result.backbone, len(result.matched), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
def test_an_alexnet_is_imported_in_three_times_its_size_and_gives_the_golden_numbers(tmp_path):
    weights, folders = imagenet_layout(released_state_dict("alexnet")), [tmp_path / "zipped", tmp_path / "older"]
    for folder in folders:
        folder.mkdir()
        torch.save(weights, folder / "net.pth", _use_new_zipfile_serialization=folder.name == "zipped")
    ended = subprocess.run([sys.executable, "-c", MEASURE, *map(str, folders)], capture_output=True, text=True, check=True)
    measured = [line.split() for line in ended.stdout.splitlines()]

    for (memory, *found), folder in zip(measured, folders, strict=True):
        size = (folder / "net.pth").stat().st_size
        assert size / 2 < int(memory) <= 3 * size
        assert found == ["alexnet", str(len(golden_of("alexnet")["keys"]))]
    assert_golden(str(folders[0] / "run"), "alexnet")
