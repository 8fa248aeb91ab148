"""Weights to begin with: what matches is taken and counted, what fits nowhere is refused, a resumed run needs none."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import avtcli
from avtcli.errors import AvtError
from avtcli.events import Event, Notice
from avtcli.exporting.export import export
from avtcli.models.weights import open_weights
from avtcli.storage.checkpoints import load_newest
from avtcli.training.training_setup import TrainingSetup, build_training_setup
from tests.support import run_tiny, tiny_config

pytestmark = pytest.mark.usefixtures("few_held_out_images")


def begin(init_from: object = None, *, run: Path | None = None, **over: Any) -> tuple[TrainingSetup, list[str]]:
    """A setup of another seed, and its notices."""
    events: list[Event] = []
    config = tiny_config(seed=9, init_from=None if init_from is None else str(init_from), **over)
    setup = build_training_setup(config, run=run, resume=run is not None, on_event=events.append)
    return setup, [event.text for event in events if isinstance(event, Notice)]


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_newest(run / "checkpoints").model


@pytest.mark.parametrize("inside", ["", "checkpoints/step-0000000009"], ids=["run", "checkpoint"])
def test_a_run_gives_encoder_and_decoder_and_all_names_match(tiny_run: Path, inside: str) -> None:
    setup, notices = begin(tiny_run / inside)
    theirs = weights_of(tiny_run)

    assert all(torch.equal(tensor, theirs[name]) for name, tensor in setup.net.state_dict().items())
    count = sum(name.startswith("encoder.backbone.") and t.is_floating_point() for name, t in theirs.items())
    assert notices == [f"weights of {tiny_run / inside}: the whole backbone ({count} tensors)"]


@pytest.mark.usefixtures("exports_load_here")
def test_an_exported_file_gives_the_encoder_and_no_decoder(tiny_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "encoder.safetensors"
    export(open_weights(tiny_run), out=file, layer=None, on_event=lambda event: None)
    theirs, fresh = weights_of(tiny_run), begin()[0].net.state_dict()
    setup, notices = begin(file)

    for name, tensor in setup.net.state_dict().items():
        if name.startswith("transformed."):  # the file has none: they begin as those of the originals
            name = "encoder." + name.removeprefix("transformed.").replace("/", ".")
        assert torch.equal(tensor, (theirs if name.startswith("encoder.") else fresh)[name]), name
    assert notices[0].endswith(" tensors); avt's own heads start at random (objective)")


def test_a_file_in_timms_own_names_gives_the_backbone(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    save_file({name: tensor + 1 for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors")
    setup, notices = begin(tmp_path / "model.safetensors", backbone={"name": "test_resnet"})
    theirs = load_file(tmp_path / "model.safetensors")

    assert all(torch.equal(tensor, theirs[name]) for name, tensor in setup.net.encoder.backbone.model.state_dict().items())
    assert ": the whole backbone (" in notices[0]
    assert notices[0].endswith("; avt's own heads start at random (log-variance, objective); not used: fc.bias, fc.weight")


def test_a_tensor_of_another_shape_stays_as_it_was_and_is_counted(tiny_run: Path, tmp_path: Path) -> None:
    tensors, fresh = weights_of(tiny_run), begin()[0].net.state_dict()
    name = "encoder.backbone.conv3.0.0.weight"
    save_file({**tensors, name: torch.zeros(3, 2)}, tmp_path / "changed.safetensors")
    setup, notices = begin(tmp_path / "changed.safetensors")

    assert torch.equal(setup.net.state_dict()[name], fresh[name])
    count = sum(n.startswith("encoder.backbone.") and t.is_floating_point() for n, t in tensors.items())
    found = "conv3.0.0.weight (3, 2) for (10, 10, 3, 3)"
    assert f": {count - 1} of the backbone's {count} tensors, not {found}; not used: {name}" in notices[0]


def test_weights_of_another_network_are_refused(tiny_run: Path) -> None:
    with pytest.raises(AvtError, match=r"No weight of .* fits the backbone: its first is .*ours encoder"):
        begin(tiny_run, backbone={"name": "nin", "width": 0.1})


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(AvtError, match="its first is none, ours"):
        begin(tmp_path / "empty.safetensors")


def test_a_broken_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    with pytest.raises(AvtError, match=r"broken\.safetensors does not parse as safetensors: .*Was it cut short\?"):
        begin(tmp_path / "broken.safetensors")
    with pytest.raises(AvtError, match="There is no run folder, checkpoint or file"):
        begin(tmp_path / "nowhere")


def test_a_resumed_run_reads_nothing_to_begin_with(tmp_path: Path, tiny_run: Path) -> None:
    assert begin(tmp_path / "gone since", run=tiny_run)[1] == []


def test_training_starts_from_the_weights_and_the_run_records_them(tiny_run: Path, tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "next", init_from=str(tiny_run), max_steps=1)
    theirs, first = weights_of(tiny_run), load_file(run / "checkpoints/step-0000000000/model.safetensors")

    assert all(torch.equal(tensor, theirs[name]) for name, tensor in first.items())
    assert f'init_from = "{tiny_run}"' in (run / "config.toml").read_text()


def test_published_weights_are_fetched_at_the_beginning_alone(monkeypatch: pytest.MonkeyPatch, tiny_run: Path) -> None:
    asked: list[bool] = []
    create = timm.create_model

    def spy(name: str, *, pretrained: bool, **args: Any) -> Any:
        asked.append(pretrained)
        return create(name, **args)

    monkeypatch.setattr(timm, "create_model", spy)
    backbone = {"name": "timm:test_efficientnet", "pretrained": "true"}
    setup, notices = begin(backbone=backbone)
    at_first = set(asked)
    asked.clear()
    begin(backbone=backbone, run=tiny_run)

    assert (at_first, set(asked)) == ({True}, {False})
    assert notices == ["timm:test_efficientnet: initialised with published weights (pretrained=True)"]
    assert "pretrained" not in setup.spec.backbone.options  # so that loading the run's weights fetches nothing


def test_the_command_takes_a_run(avt, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, "runs/named")
    Path("named").mkdir()  # its images, say
    measured = "embed --backbone nin -o backbone.width=0.05 --init-from named --dataset fashion-mini --split test --out e.npz"
    assert avt(f"{measured} --device cpu").code == 0
    settings = {"options": {"backbone.width": 0.05}, "limit_train": 40, "batch_size": 16, "max_steps": 1, "device": "cpu"}
    begun = avtcli.pretrain(init_from="named", **settings)
    line = "pretrain -o backbone.width=0.05 --limit-train 40 --batch-size 16 --max-steps 1 --init-from named --out run"
    result = avt(line)

    named = f'init_from = "{Path("runs/named").absolute()}"'
    assert [named in (Path(run) / "config.toml").read_text() for run in (begun.run, "run")] == [True, True]
    assert (result.code, ": the whole backbone (" in result.stderr) == (0, True)
    assert avt(f"pretrain --resume run --init-from {tiny_run}").code == 2
