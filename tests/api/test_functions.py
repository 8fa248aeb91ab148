"""The commands as functions: the options of the command line, and the same results."""

import inspect
import json
import re
import shutil
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel

import avtcli
from avtcli.cli.app import load_command
from avtcli.config.components import Flag, Plugin, value_type
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.probe_config import ProbeConfig
from tests.support import Result

COMMANDS = ("pretrain", "probe", "evaluate", "embed", "export", "report")
OF_A_TERMINAL = {"json", "dry_run", "processes", "max_restarts", "verbose"}
"""Options without an argument: what they ask for is the result, or belongs to the process."""
RUN = "--limit-train 40 --batch-size 16 --epochs 1 --eval-every 0 --seed 3 -o backbone.width=0.05 -o schedule.warmup=0.2"
SAME_RUN = {
    **{"limit_train": 40, "batch_size": 16, "epochs": 1, "eval_every": 0, "seed": 3},
    "options": {"backbone.width": 0.05, "schedule.warmup": 0.2},
}


def options_of(command: str) -> set[str]:
    """The names of a command's options, as keyword arguments."""
    found = set()
    for parameter in load_command(command).params:
        name = parameter.opts[0].lstrip("-").replace("-", "_")
        found.add("options" if name == "o" else name)
    return found - OF_A_TERMINAL - {"folder"}  # the argument DIR, which `dataset` says


@pytest.mark.parametrize("command", COMMANDS)
def test_a_function_takes_the_options_of_its_command(command: str) -> None:
    parameters = inspect.signature(getattr(avtcli, command)).parameters

    assert set(parameters) == {*options_of(command), "progress"}
    kinds = {name: parameter.kind for name, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY}
    positional = {"pretrain": [], "report": ["runs"]}.get(command, ["run"])
    assert kinds == dict.fromkeys(positional, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def annotation_of(field: Any, flag: Flag) -> Any:
    """What the function's argument for a field of the settings is annotated with."""
    kind = value_type(field)
    if kind is Plugin:
        return str | None
    if get_origin(kind) is tuple:
        part = get_args(kind)[0]
        part = get_args(part)[0] if get_origin(part) is typing.Annotated else part
        return part | Sequence[part] | None
    return (str | Path if flag.metavar in ("DIR", "FILE", "RUN|FILE") else kind) | None


@pytest.mark.parametrize(("command", "model"), [("pretrain", PretrainConfig), ("probe", ProbeConfig)])
def test_arguments_have_the_types_of_the_settings(command: str, model: type[BaseModel]) -> None:
    parameters = inspect.signature(getattr(avtcli, command)).parameters
    for name, field in model.model_fields.items():
        for flag in (mark for mark in field.metadata if isinstance(mark, Flag)):
            parameter = parameters[(flag.name or name).replace("-", "_")]
            assert parameter.annotation == annotation_of(field, flag), name
            assert parameter.default is None, name


@pytest.mark.parametrize("command", ["evaluate", "embed", "export"])
def test_arguments_have_the_defaults_and_choices_of_the_options(command: str) -> None:
    parameters = inspect.signature(getattr(avtcli, command)).parameters
    for option in load_command(command).params:
        if (name := option.opts[0].lstrip("-").replace("-", "_")) in parameters:
            assert parameters[name].default == (option.default if option.default != [] else None), name
            if choices := getattr(getattr(option, "type", None), "choices", None):
                assert set(get_args(parameters[name].annotation)) == set(choices), name
                assert get_origin(parameters[name].annotation) is Literal, name


@pytest.mark.parametrize("function", [*COMMANDS, "load_encoder", "load_model"])
def test_a_docstring_explains_each_argument(function: str) -> None:
    text = inspect.getdoc(getattr(avtcli, function)) or ""
    section = re.search(r"^Args:\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)

    assert section is not None
    explained = re.findall(r"^    (\w+): \S", section[1], re.MULTILINE)
    assert explained == list(inspect.signature(getattr(avtcli, function)).parameters)


def test_the_same_run_from_python_and_from_the_command_line_is_the_same(avt: Callable[..., Result]) -> None:
    typed = json.loads(avt(f"pretrain {RUN} --out typed --json").stdout)
    called = avtcli.pretrain(**SAME_RUN, out="called")

    (there, here) = (Path(run) / "checkpoints/step-0000000003/model.safetensors" for run in ("typed", "called"))
    assert here.read_bytes() == there.read_bytes()
    assert isinstance(called, avtcli.PretrainResult)
    assert called.run == str(Path("called").absolute())
    assert {**asdict(called), "seconds": 0, "run": ""} == {**typed, "seconds": 0, "run": ""}


@pytest.mark.parametrize(
    ("command", "line", "arguments"),
    [
        (
            "probe",
            "--layer conv1,conv2 --pool max --head knn --shots 2,3 --no-baseline -o head.k=[3]",
            {
                "layer": ["conv1", "conv2"],
                "pool": "max",
                "head": "knn",
                "shots": (2, 3),
                "baseline": False,
                "options": {"head.k": [3]},
            },
        ),
        (
            "evaluate",
            "--count 10 --layer conv1 --transform translation --seed 2 -o transform.shift=0.2",
            {"count": 10, "layer": "conv1", "transform": "translation", "seed": 2, "options": {"transform.shift": 0.2}},
        ),
    ],
)
def test_a_measurement_is_that_of_the_command_line(
    avt: Callable[..., Result], tiny_run: Path, command: str, line: str, arguments: dict[str, Any]
) -> None:
    where = f"{shutil.copytree(tiny_run, Path('run').absolute())}/checkpoints/step-0000000009"
    typed = json.loads(avt(f"{command} {where} {line} --out typed.json --json").stdout)
    result = getattr(avtcli, command)(where, **arguments, out="called.json")

    assert json.loads(json.dumps(asdict(result))) == typed
    assert json.loads(Path("called.json").read_text()) == typed


def test_features_are_those_of_the_command_line(avt: Callable[..., Result], tiny_run: Path) -> None:
    line = f"embed {tiny_run} --split test --pool max --pool-size 2 --layer conv1 -o augment.crop=24"
    avt(f"{line} --out typed.npz")
    embedded = avtcli.embed(
        tiny_run, split="test", pool="max", pool_size=2, layer="conv1", options={"augment.crop": 24}, out="called.npz"
    )

    assert Path("called.npz").read_bytes() == Path("typed.npz").read_bytes()
    assert embedded.layers["conv1"][1:] == (5, 2, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: avtcli.pretrain(options={"width": 0.1}),
            "-o takes KIND.KEY=VALUE, as in `-o backbone.width=0.25`, found 'width'",
        ),
        (lambda: avtcli.pretrain(options={"backbon.width": 0.1}), "no kind 'backbon'"),
        (lambda: avtcli.pretrain(options={"backbone.width": "wide"}), "option 'width'"),
        (lambda: avtcli.pretrain(batch_size="many"), "batch_size: "),
        (lambda: avtcli.pretrain(resume="last"), "There is no run under runs"),
        (lambda: avtcli.pretrain(resume="x", out="y"), "leave out `out` and `recipe`"),
        (lambda: avtcli.pretrain(dataset="folder:nowhere"), "nowhere"),
        (lambda: avtcli.probe("nowhere"), "There is no run folder, checkpoint or file"),
        (lambda: avtcli.probe(layer="all"), "There is no run under runs"),
        (lambda: avtcli.evaluate(backbone="nin", count=1), "count: "),
        (lambda: avtcli.evaluate(backbone="nin", device="tpu"), "There is no tpu device here"),
        (lambda: avtcli.embed(backbone="nin", pool="median"), "pool: "),
        (lambda: avtcli.embed(backbone="nin", pool="none", pool_size=2), "give only one of them"),
        (lambda: avtcli.export("nowhere", format="onnx"), "There is no run folder, checkpoint or file"),
        (lambda: avtcli.export("nowhere", format=5), "`format` takes a text, found 5"),
        (lambda: avtcli.evaluate(backbone="nin", seed=0.5), "seed: Input should be a valid integer"),
        (lambda: avtcli.evaluate(backbone="nin", device=["cpu"]), "device: Input should be a valid string, found ['cpu']"),
        (lambda: avtcli.embed(backbone="nin", dataset=5), "name: Input should be a valid string, found 5"),
        (lambda: avtcli.embed(backbone="nin", layer=5), "layers.0: Input should be a valid string, found 5"),
        (lambda: avtcli.embed(options="augment.crop=3"), "`options` takes a dict"),
        (lambda: avtcli.embed(options={5: 3}), "found '5'"),
        (lambda: avtcli.evaluate(5), "A path is a text without NUL or a Path, found 5"),
        (lambda: avtcli.evaluate(backbone="nin", out="a\0b"), "found 'a\\x00b'"),
        (lambda: avtcli.probe(lr="fast"), "rates.0: Input should be a valid number"),
        (lambda: avtcli.pretrain(lr="fast"), "--lr, must be above 0 and finite, found 'fast'"),
        (lambda: avtcli.pretrain(lr=-1), "--lr, must be above 0 and finite, found -1"),
        (lambda: avtcli.report(5), "A path is a text without NUL or a Path, found 5"),
    ],
)
def test_what_is_wrong_is_an_error_with_a_message_and_nothing_is_written(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(avtcli.AvtError) as caught:
        call()

    assert words in str(caught.value)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("command", "option", "least"),
    [
        *((command, "workers", 0) for command in ("pretrain", "probe", "evaluate", "embed")),
        *(("evaluate", "count", 2), ("embed", "pool_size", 1), ("embed", "limit_train", 1)),
    ],
)
def test_a_number_out_of_bounds_is_the_same_error_from_python_and_the_command_line(
    avt, command: str, option: str, least: int
) -> None:
    with pytest.raises(avtcli.AvtError) as caught:
        getattr(avtcli, command)(backbone="nin", **{option: least - 1})
    result = avt(f"{command} --backbone nin --{option.replace('_', '-')} {least - 1}")

    assert f"{option}: Input should be greater than or equal to {least}, found {least - 1}" in str(caught.value)
    assert (result.code, result.stderr) == (2, f"error: {caught.value}\n")


def test_an_export_loads_again_from_a_path_with_a_space_in_the_home_folder(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path().absolute()))
    exported = avtcli.export(tiny_run, layer="conv1", out="~/a b é.safetensors")
    x = torch.rand(2, 1, 32, 32)

    assert (exported.file, exported.step) == (str(Path("a b é.safetensors").absolute()), 9)
    assert torch.equal(avtcli.load_encoder("~/a b é.safetensors")(x), avtcli.load_encoder(tiny_run, layer="conv1")(x))


def test_the_package_lists_what_it_offers() -> None:
    assert set(avtcli.__all__) <= set(dir(avtcli))
    assert all(getattr(avtcli, name).__doc__ for name in avtcli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        avtcli.pretrian  # noqa: B018


def test_a_result_states_its_types() -> None:
    for command, result in (("pretrain", "PretrainResult"), ("export", "ExportResult")):
        hints = typing.get_type_hints(getattr(avtcli, command), localns={result: getattr(avtcli, result)})
        assert hints["return"] is getattr(avtcli, result)
