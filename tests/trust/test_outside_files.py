"""What comes from outside is read within bounds or refused: files, networks, settings, and the text that is printed."""

import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from avtcli import events, load_encoder, load_model
from avtcli.cli import console, progress
from avtcli.cli.app import AvtGroup
from avtcli.config.resolution import resolve, validate
from avtcli.errors import AvtError
from avtcli.models.model_building import load_weights
from avtcli.models.weights import open_weights
from avtcli.storage.checkpoints import load_checkpoint
from avtcli.storage.tensor_files import read_tensors
from tests.support import Result, run_tiny
from tests.trust.mutations import export_of

TWO = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "I64", "shape": [], "data_offsets": [8, 16]}}


def with_header(header: bytes | dict[str, Any], data: bytes = bytes(16), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def test_a_valid_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(with_header({**TWO, "__metadata__": {"avt": '{"k": 1}'}}))
    file = read_tensors(tmp_path / "x.safetensors")

    assert (file.tensors["a"].tolist(), file.tensors["b"].item(), file.about) == ([0.0, 0.0], 0, {"k": 1})


A, B = TWO["a"], TWO["b"]
BROKEN: dict[str, bytes] = {
    "cut": with_header(TWO)[:7],
    "length 2^63": with_header(TWO, length=2**63),
    "length beyond the file": with_header(TWO, length=10_000),
    "not UTF-8": with_header(b'{"\xff": 1}'),
    "no object": with_header(b"[1]"),
    "NaN": with_header(b'{"a": NaN}'),
    "5000 digits": with_header(b'{"a": ' + b"9" * 5000 + b"}"),
    "deep": with_header(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "duplicate keys": with_header(b'{"a": %b, "a": %b}' % ((json.dumps(A).encode(),) * 2), bytes(8)),
    "negative offset": with_header({"a": {**A, "data_offsets": [-8, 0]}, "b": B}),
    "overlap": with_header({**TWO, "c": A}),
    "hole": with_header({"a": A, "b": {**B, "data_offsets": [16, 24]}}, bytes(24)),
    "too long": with_header(TWO, bytes(17)),
    "shape product": with_header({"a": {**A, "shape": [4194305, 4194305, 211106198978564]}, "b": B}),
    "no elements and too many": with_header({"a": {**A, "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, b""),
    "a terabyte": with_header({"a": {**A, "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
    "dtype": with_header({"a": {**A, "dtype": "F4"}, "b": B}),
    "metadata": with_header({**TWO, "__metadata__": {"a": 1}}),
    "metadata no JSON": with_header({**TWO, "__metadata__": {"avt": "{"}}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_header_that_does_not_describe_the_file_is_refused_naming_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(BROKEN[name])
    with pytest.raises(AvtError, match=r"x\.safetensors (does not parse|is no JSON|has a number)"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("count", [150_000, 700_000])  # below and above the bound of the header's length
def test_a_header_of_very_many_tensors_is_refused_before_it_is_parsed(tmp_path: Path, count: int) -> None:
    entry = ',"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = b"{" + "".join(entry % i for i in range(count)).encode()[1:] + b"}"
    (tmp_path / "x.safetensors").write_bytes(with_header(text, b""))
    began = time.process_time()
    with pytest.raises(AvtError, match=r"x\.safetensors"):
        read_tensors(tmp_path / "x.safetensors")

    assert time.process_time() - began < 0.5


def test_what_is_no_file_is_refused_without_waiting(avt: Callable[[str], Result], tmp_path: Path) -> None:
    os.mkfifo("pipe.safetensors")
    os.mkfifo("pipe.toml")
    line = "pretrain -o backbone.width=0.05 --dry-run"

    assert "pipe.safetensors cannot be read: it is a pipe or a device" in avt(f"{line} --homographies pipe.safetensors").stderr
    assert "pipe.toml cannot be read: it is a pipe or a device" in avt(f"{line} --recipe pipe.toml").stderr
    assert "net.pth cannot be read: No such file" in avt("import net.pth").stderr
    for name in ("x" * 300 + ".safetensors", "a\0b.safetensors", "\ud800.safetensors"):
        for read in (open_weights, read_tensors):
            with pytest.raises(AvtError, match=r"There is no run folder|cannot be read"):
                read(Path(name))


NIN = {"name": "nin", "width": 0.05}
LARGER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (NIN, {"backbone": {"name": "nin", "width": 60.0}}),
    (NIN, {"backbone": {"name": "nin", "width": 1e9}}),
    (NIN, {"backbone": {"name": "alexnet"}, "size": [224, 224]}),
    (NIN, {"channels": 10**6}),
    (NIN, {"size": [10**5, 10**5]}),
    ({"name": "timm:test_resnet"}, {"size": [10**5, 10**5]}),
    ({"name": "timm:test_resnet"}, {"backbone": {"name": "timm:test_resnet", "args": {"channels": [60_000] * 4}}}),
    ({"name": "timm:test_vit"}, {"size": [10**5, 10**5]}),
    ({"name": "timm:test_vit"}, {"backbone": {"name": "timm:test_vit", "args": {"depth": 10**6}}}),
    ({"name": "timm:test_vit"}, {"backbone": {"name": "timm:test_vit", "args": {"embed_dim": 64_000}}}),
    ({"name": "timm:test_vit"}, {"backbone": {"name": "timm:vit_giant_patch14_224"}, "size": [224, 224]}),
]


def changed_export(backbone: dict[str, Any], change: dict[str, Any]) -> Path:
    path = Path("x.safetensors")
    path.write_bytes(export_of(backbone))
    about = read_tensors(path).about or {}
    about["model"] |= change
    save_file(load_file(path), path, {"avt": json.dumps(about)})
    return path


@pytest.mark.parametrize(("backbone", "change"), LARGER)
def test_a_network_larger_than_its_weights_is_refused_before_it_is_made(
    backbone: dict[str, Any], change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, largest = changed_export(backbone, change), 0
    empty = torch.empty

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal largest
        made = empty(*args, **kwargs)
        largest = max(largest, 0 if made.device.type == "meta" else made.nbytes)
        return made

    monkeypatch.setattr(torch, "empty", counted)
    with pytest.raises(AvtError, match=r"larger than its weights|takes at most|needs a width|arguments are at most"):
        load_encoder(path)
    assert largest < 100e6


def test_weights_that_are_not_finite_or_no_numbers_are_refused_by_name(tiny_run: Path, tmp_path: Path) -> None:
    model = load_model(tiny_run)
    name = "encoder.backbone.conv3.0.0.weight"
    for bad in (float("nan"), float("inf")):
        tensors = {**model.state_dict(), name: torch.full_like(model.state_dict()[name], bad)}
        with pytest.raises(AvtError, match=rf"weights that are not finite: {name}"):
            load_weights(model, tensors, path=Path("x"))
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(AvtError, match=rf"weights that are not finite: {name}"):
            run_tiny(tmp_path / "run", init_from=str(tmp_path / "x.safetensors"))
    with pytest.raises(AvtError, match=rf"{name} is torch.int32, expected torch.float32"):
        load_weights(model, {**tensors, name: tensors[name].nan_to_num(0, 0, 0).int()}, path=Path("x"))


SOURCES = [
    *({"args": {key: "x.pth"}} for key in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")),
    *({"args": {"act_layer": text}} for text in ("/x.pth", "http://a/x", "hf-hub:a", "a\\b")),
    *({"args": {"a": {"b": [text]}}} for text in ("/x.pth", "local-dir:x")),
    {"args": {"a": {"checkpoint_path": "x"}}},
    *({"name": f"timm:{name}"} for name in ("hf-hub:a/b", "local-dir:/x", "hf_hub:a/b", "a/b")),
]


@pytest.mark.parametrize("change", SOURCES)
def test_sources_of_weights_are_refused_in_files_and_recipes(avt: Callable[[str], Result], change: dict[str, Any]) -> None:
    backbone = {"name": "timm:test_vit", **change}
    path = changed_export({"name": "timm:test_vit"}, {"backbone": backbone})
    with pytest.raises(AvtError, match="`--init-from FILE`"):
        load_encoder(path)
    Path("r.toml").write_text(f"backbone = {json.dumps(backbone).replace(': ', ' = ')}")
    assert "`--init-from FILE`" in avt("pretrain --dry-run --recipe ./r.toml --limit-train 40").stderr


def test_opening_a_file_never_downloads() -> None:
    path = changed_export({"name": "timm:test_vit"}, {"backbone": {"name": "timm:test_vit", "pretrained": True}})
    with pytest.raises(AvtError, match="asks for published weights"):
        open_weights(path)


RECIPE = "seed = 3\n[backbone]\nname = 'nin'\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_recipe_is_read_as_editors_write_it(encoding: str) -> None:
    Path("r.toml").write_text(RECIPE, encoding=encoding)

    assert resolve({}, recipe="r.toml").seed == 3


BAD_RECIPES = {
    "backbone = 'nin'": r"backbone: found 'nin', expected a table",
    "about = 1": r"needs a table \[about\]",
    "[about]\nkind = [1]": r"needs a table \[about\]",
    "x = " + "[" * 5000 + "]" * 5000: r"r\.toml is no TOML",
    ".".join("a" * 5000) + " = 1": r"more than 32 tables",
    "seed = " + "1" * 5000: r"r\.toml is no TOML",
    "seed = " + "1" * 400: r"more than 64 bits at 'seed'",
    "[transform]\nname = 'projective'\nshift = 1e400": r"not finite at 'transform\.shift'",
    "backbone.name = 5": r"backbone\.name: Input should be a valid string, found 5",
    "bank_count = 1000000000000": r"bank_count: Input should be less than",
}


@pytest.mark.parametrize("text", BAD_RECIPES)
def test_a_recipe_with_what_no_setting_can_be_is_refused(text: str) -> None:
    Path("r.toml").write_text(text)
    with pytest.raises(AvtError, match=BAD_RECIPES[text]):
        resolve({}, recipe="r.toml")


def test_a_text_that_is_not_utf_8_is_refused_in_every_setting() -> None:
    for given in ({"data_dir": "\udcff"}, {"dataset": {"name": "folder:\udcff"}}, {"backbone": {"\udcff": 1}}):
        with pytest.raises(AvtError, match="a text that is not UTF-8"):
            resolve(given, recipe=None)


@pytest.mark.parametrize("key", ["step", "model", "config", "environment", "param_groups", "seconds"])
def test_a_state_without_a_value_or_of_another_type_is_refused(tiny_run: Path, tmp_path: Path, key: str) -> None:
    import shutil
    from hashlib import sha256

    folder = tmp_path / "step-0000000009"
    shutil.copytree(tiny_run / "checkpoints" / folder.name, folder)
    state, manifest = (json.loads((folder / name).read_text()) for name in ("state.json", "manifest.json"))
    for change in ({}, {key: "x"}, {key: None}):
        blob = json.dumps({**{k: v for k, v in state.items() if k != key}, **change}).encode()
        (folder / "state.json").write_bytes(blob)
        stated = {"size": len(blob), "sha256": sha256(blob).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps({**manifest, "state.json": stated}))
        with pytest.raises(AvtError, match=rf"state\.json is no state of a run: .*'{key}'"):
            load_checkpoint(folder).about[key]


HOSTILE, ESCAPED = "\x1b[31mred\x07\u202e\udcff", "\\x1b[31mred\\x07\\u202e\\udcff"


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.TextIOWrapper, Terminal])
def test_what_files_name_is_printed_escaped(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = stream(io.BytesIO(), "utf-8"), stream(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    console.say(f"one\n{HOSTILE}")
    console.say_table(["a"], [[HOSTILE]])
    console.say_facts({"a": HOSTILE})
    on_plain = progress.plain_renderer()
    with progress._live() if stream is Terminal else __import__("contextlib").nullcontext(on_plain) as on_event:
        on_event(events.Notice(HOSTILE))
        on_event(events.Started((("a", HOSTILE),)))
        on_event(events.Saved(Path(HOSTILE)))
        on_event(events.Progress(HOSTILE, 1, 1, "steps", HOSTILE))
    out.flush()
    err.flush()
    printed = [out.buffer.getvalue().decode(), err.buffer.getvalue().decode()]

    assert [text.count(ESCAPED) >= 3 for text in printed] == [True, True]
    assert printed[0].startswith("one\n")
    assert all("\x1b[31mred" not in text and "\u202e" not in text for text in printed)


@pytest.mark.parametrize(
    "args", [[HOSTILE], [f"--{HOSTILE}"], ["export", f"--{HOSTILE}"], ["export", HOSTILE], ["bench", "--only", HOSTILE]]
)
def test_errors_quote_arguments_escaped(args: list[str]) -> None:
    from avtcli.cli.app import app

    result = CliRunner().invoke(app, args)

    assert result.exit_code == 2
    assert "\\x1b[31mred" in result.stderr
    assert "\x1b[31mred" not in result.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "runs/x"), "error: runs/x: Permission denied."),
        (OSError(5, "Input/output error"), "error: The operating system: Input/output error."),
        (BrokenPipeError(32, "Broken pipe"), ""),
    ],
)
def test_what_the_operating_system_refuses_is_one_message_with_exit_code_1(error: OSError, message: str) -> None:
    app = typer.Typer(cls=AvtGroup, pretty_exceptions_enable=False)
    app.callback()(lambda: None)

    @app.command("pretrain")
    def fail() -> None:
        raise error

    import avtcli.cli.app as module

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "load_command", lambda name: typer.main.get_group(app).commands[name])
        result = CliRunner().invoke(app, ["pretrain"])

    assert (result.exit_code, result.stderr.startswith(message), "Traceback" in result.stderr) == (1, True, False)
    assert bool(result.stderr) == bool(message)


def test_settings_are_shown_shortened() -> None:
    from avtcli.config.model_spec import ModelSpec

    with pytest.raises(AvtError) as caught:
        validate(ModelSpec, {"backbone": [0] * 100_000}, where="x")

    assert len(str(caught.value)) < 2000
