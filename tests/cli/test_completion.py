"""Shell completion, asked as the shells ask: by environment variables."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from avtcli import load_encoder, recipes, registry
from avtcli.cli.app import app
from avtcli.probing.heads import HEADS
from tests.support import run_tiny

Complete = Callable[..., list[str]]
PROGRAM = """
import sys
from avtcli.cli.app import app
try:
    app(prog_name="avt")
finally:
    print("modules", *sys.modules, file=sys.__stderr__)
"""
TAKING_A_VARIANT = {
    "backbone": {"timm:"},
    "dataset": {f"{name}:" for name in registry.names("dataset") if name != "fashion-mini"},
}


def split_as_bash(line: str) -> list[str]:
    """The words of a command line as bash hands them over, which ends words at `:` and `=` too."""
    return [*re.findall(r"[:=]+|[^\s:=]+", line), *([""] if line.endswith(" ") else [])]


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complete:
    """The completions of a command line, cursor at its end, in bash."""

    def ask(line: str) -> list[str]:
        words = split_as_bash(line)
        variables = {"_AVT_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit):
            app([], prog_name="avt")
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out.split()

    return ask


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("avt pretrain --transform ", "transform"),
        ("avt evaluate --transform=", "transform"),
        ("avt pretrain --objective ", "objective"),
        ("avt pretrain --tracker ", "tracker"),
        ("avt export --format ", "exporter"),
        ("avt probe --backbone ", "backbone"),
        ("avt embed --dataset ", "dataset"),
    ],
)
def test_an_option_that_takes_a_plugin_offers_those_of_its_kind(complete: Complete, line: str, kind: str) -> None:
    offered = complete(line)

    assert sorted(name for name in offered if not name.endswith(":")) == registry.names(kind)
    assert {name for name in offered if name.endswith(":")} == TAKING_A_VARIANT.get(kind, set())


def test_heads_sums_and_all_plugins_are_offered_by_name(complete: Complete) -> None:
    assert complete("avt probe --head ") == list(HEADS)
    assert complete("avt pretrain --transform affine+pho") == ["affine+photometric"]
    assert complete("avt plugins show ni") == ["nin"]
    assert complete("avt plugins check ni") == ["nin"]


def test_recipes_are_those_of_the_command(complete: Complete) -> None:
    texts = {name: recipes.text(name) for name in recipes.names()}

    for command in ("pretrain", "probe"):
        assert complete(f"avt {command} --recipe ") == [n for n, text in texts.items() if f'kind = "{command}"' in text]
    assert complete("avt recipes copy ") == [*texts]


@pytest.mark.parametrize("line", ["avt probe ", "avt compare ", "avt pretrain --resume ", "avt pretrain --init-from="])
def test_runs_are_offered_newest_first_then_last(complete: Complete, line: str) -> None:
    for seconds, name in ((20, "b"), (30, "a"), (10, "c")):
        manifest = Path("runs", name, "checkpoints", "step-0000000001", "manifest.json")
        manifest.parent.mkdir(parents=True)
        manifest.touch()
        (Path("runs", name) / "config.toml").touch()
        os.utime(Path("runs", name) / "config.toml", (seconds, seconds))
    Path("runs/no-run").mkdir()

    assert complete(line) == ["runs/a", "runs/b", "runs/c", "last"]
    assert complete(f"{line}runs/a") == ["runs/a"]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_tiny(tmp_path_factory.mktemp("runs") / "net", backbone={"name": "stranger-net", "blocks": 2}, max_steps=1)


def test_layers_are_those_of_the_run(complete: Complete, small_run: Path, tiny_run: Path) -> None:
    layers = list(load_encoder(small_run).layers)

    Path("runs").mkdir()
    (Path("runs") / "newest").symlink_to(tiny_run)
    assert complete(f"avt probe {small_run} --layer ") == [*layers, "all"]
    assert complete(f"avt export {small_run} --layer ") == layers
    assert complete(f"avt embed {small_run} --layer block1,block2") == ["block1,block2"]
    step = small_run / "checkpoints" / "step-0000000001"
    assert complete(f"avt probe {step} --layer st") == ["stem"]


def test_layers_are_those_of_the_newest_run_or_of_a_backbone(complete: Complete, small_run: Path) -> None:
    Path("runs").mkdir()
    (Path("runs") / "linked").symlink_to(small_run)

    assert complete("avt evaluate --layer st") == ["stem"]
    assert complete("avt probe --backbone stranger-net -o backbone.blocks=1 --layer b") == ["block1"]


@pytest.mark.parametrize(
    ("line", "kind", "plugin"),
    [
        ("avt pretrain -o ", "backbone", "nin"),
        ("avt pretrain -o ", "transform", "projective"),
        ("avt pretrain --backbone stranger-net -o ", "backbone", "stranger-net"),
        ("avt pretrain --backbone timm:resnet18 -o ", "backbone", "timm"),
        ("avt pretrain --backbone resnet18 -o ", "backbone", "timm"),
        ("avt pretrain --recipe cifar10-nin-aet -o ", "objective", "aet"),
        ("avt evaluate --transform rotation -o ", "transform", "rotation"),
        ("avt bench -o ", "backbone", "nin"),
    ],
)
def test_the_options_of_the_chosen_plugin_are_offered(complete: Complete, line: str, kind: str, plugin: str) -> None:
    offered = [text for text in complete(line) if text.startswith(f"{kind}.")]

    assert [text for text in offered if text.endswith("=")] == [
        f"{kind}.{key}=" for key in registry.options(registry.info(kind, plugin))
    ]


def test_one_option_is_offered_with_its_default_or_its_values(complete: Complete) -> None:
    assert complete("avt pretrain -o backbone.w") == ["backbone.width=", "backbone.width=1.0"]
    assert complete("avt pretrain -o backbone.width=") == ["1.0"]
    assert complete("avt pretrain -o augment.fl") == ["augment.flip=", "augment.flip=true", "augment.flip=false"]
    assert complete("avt probe --head knn -o head.t") == ["head.temperature=", "head.temperature=0.07"]
    assert "transform.affine.shear_deg=" in complete("avt pretrain --transform affine+photometric -o transform.a")
    assert "objective.aet.weight=" in complete("avt pretrain --objective aet+simclr -o objective.aet.")


def test_words_that_bash_splits_are_read_as_one(complete: Complete) -> None:
    assert "resnet18" in complete("avt pretrain --backbone timm:resnet1")
    assert complete("avt pretrain --backbone timm:resnet18 -o backbone.code_at=x --transform tran") == ["translation"]
    assert complete("avt pretrain --objective=simc") == ["simclr"]


def test_the_script_of_bash_itself_completes(tmp_path: Path) -> None:
    avt = tmp_path / "avt"
    avt.write_text(f"#!{sys.executable}\nfrom avtcli.cli.app import app\napp(prog_name='avt')\n")
    avt.chmod(0o755)
    asked = "COMP_WORDS=(avt pretrain --backbone timm : resnet18) COMP_CWORD=5; _avt_completion avt; echo ${COMPREPLY[*]}"
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    source = os.pathsep.join(entry for entry in sys.path if entry)
    ended = subprocess.run(
        ["bash", "--norc", "-c", f'eval "$(_AVT_COMPLETE=source_bash avt)"; {asked}'],
        env={**os.environ, "PATH": path, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )

    assert ended.stdout.split() == ["resnet18", "resnet18d"]


@pytest.mark.parametrize(
    ("shell", "variables", "found"),
    [
        ("zsh", {"_TYPER_COMPLETE_ARGS": "avt pretrain --objective aet"}, '"aet"\n"aetv2"'),
        (
            "fish",
            {"_TYPER_COMPLETE_ARGS": "avt pretrain --objective aet", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
            "aet\naetv2",
        ),
    ],
)
def test_zsh_and_fish_are_answered(monkeypatch, capsys, shell: str, variables: dict[str, str], found: str) -> None:
    for name, value in {"_AVT_COMPLETE": f"complete_{shell}", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        app([], prog_name="avt")

    assert found in capsys.readouterr().out


def test_what_goes_wrong_prints_nothing(complete: Complete, install) -> None:
    install({"avtcli.backbones": {"odd": "absent:odd"}, "avtcli.backbone_completions": {"odd": "absent:names"}})
    Path("runs/x/checkpoints/step-0000000001").mkdir(parents=True)
    (Path("runs/x/checkpoints/step-0000000001") / "manifest.json").touch()
    (Path("runs/x/checkpoints/step-0000000001") / "state.json").write_text("{")

    assert complete("avt probe runs/x --layer ") == []
    assert complete("avt pretrain --backbone odd:") == []
    assert complete("avt pretrain --recipe absent.toml -o backbone.") == []
    assert complete("avt probe --backbone nowhere --layer ") == []


@pytest.mark.parametrize(
    "line",
    [
        "avt pretrain --backbone timm:resnet1",
        "avt pretrain --transform affine+photometric -o ",
        "avt probe RUN --layer ",
        "avt plugins show ",
        "avt export --format ",
    ],
)
def test_completion_imports_neither_torch_nor_timm(small_run: Path, line: str) -> None:
    words = split_as_bash(line.replace("RUN", str(small_run)))
    variables = {"_AVT_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), **variables},
        capture_output=True,
        text=True,
        check=True,
    )

    assert len(ended.stdout.split()) > 3
    assert not {"torch", "timm", "numpy", "torchvision"} & set(ended.stderr.split())
