"""The README cannot rot: its blocks are read against the commands and functions as they are, and run in order (slow)."""

import ast
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from typer import Context
from typer.main import get_command

import avtcli
from avtcli import recipes
from avtcli.cli.app import app
from avtcli.config.resolution import options_from_texts
from tests.parity.weights import released_state_dict
from tests.support import write_cifar10

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
IMAGES = ROOT / ".github" / "images"
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
LINES = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.strip()]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
AVT = [found[0] for line in LINES if (found := re.search(r"\bavt(cli)? .*", line)) and not line.startswith("python3")]

SHORTER = {
    "pretrain": "--max-steps 2 --limit-train 400 --batch-size 16 --eval-every 50",
    "probe": "--limit-train 400",
    "evaluate": "--count 100",
}
"""Options that the walk appends, unless AVT_README=whole."""
HAS_BF16 = torch.cpu._is_avx512_bf16_supported()
"""What `--precision bf16` needs of a CPU."""
WHOLE = os.environ.get("AVT_README") == "whole"
LEFT_OUT = ("python3 -m venv",) if WHOLE else ("python3 -m venv", "avt demo", "pretrained=true")
"""Lines that the walk leaves out: .ci/run installs, another test runs the demo, and published weights need a network."""


def parse(line: str) -> None:
    """Parse a command line as `avt` does, down to its last command, and run nothing."""
    command, args = get_command(app), shlex.split(line)[1:]
    while hasattr(command, "commands"):
        _, command, args = command.resolve_command(Context(command), args)
    context = command.make_context(command.name, list(args))
    for text in context.params.get("overrides") or []:
        options_from_texts([text], kinds=text.split(".")[:1])


def test_the_readme_has_command_blocks() -> None:
    assert len(AVT) >= 10


@pytest.mark.parametrize("line", AVT)
def test_every_avt_line_parses(line: str) -> None:
    parse(line)


def test_a_line_that_is_wrong_would_be_seen() -> None:
    with pytest.raises(BaseException, match="No such option: --dataseet"):
        parse("avt pretrain --dataseet cifar10")


@pytest.mark.parametrize("line", [line for line in LINES if not line.startswith("avt ")])
def test_every_other_line_runs_what_the_project_installs(line: str) -> None:
    for part in line.split(" && "):
        program = shlex.split(part)[0]
        assert program in ("python3", "torchrun", "srun") or re.fullmatch(r"\.venv/bin/(pip|pytest)", program)


@pytest.mark.parametrize("block", PYTHON)
def test_every_call_of_avtcli_binds(block: str) -> None:
    """Functions exist, and take the arguments that are given."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module == "avtcli":
            assert {alias.name for alias in node.names} <= set(avtcli.__all__)
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func).removeprefix("avtcli.")) in avtcli.__all__:
            keywords: dict[str, Any] = {str(keyword.arg): None for keyword in node.keywords}
            inspect.signature(getattr(avtcli, name)).bind(*node.args, **keywords)


def test_the_readme_has_at_most_350_lines_and_its_pictures() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)

    assert README.count("\n") <= 350
    assert pictures
    assert all((ROOT / picture).stat().st_size < 300_000 for picture in pictures)
    assert len(ElementTree.parse(IMAGES / "method.svg").findall("{*}image")) == 3


@pytest.mark.slow
def test_the_picture_is_drawn_from_a_run(tiny_run: Path) -> None:
    svg = ElementTree.fromstring(runpy.run_path(str(IMAGES / "draw.py"))["draw"](tiny_run))

    assert len(svg.findall("{*}image")) == 3
    assert len(svg.findall("{*}polygon")) == 2


@pytest.fixture
def folder_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder but for the files that the README takes for granted, and the programs that it calls."""
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(240):
            pixels = rng.integers(0, 256, (48, 56, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    write_cifar10(tmp_path / "data", per_batch=100)
    torch.save({f"module.{name}": tensor for name, tensor in released_state_dict("nin").items()}, tmp_path / "nin.pth")
    programs = {
        "avt": f'exec {sys.executable} -m avtcli "$@"',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',  # one task on this machine
    }
    (tmp_path / ".bin").mkdir()
    for name, line in programs.items():
        (tmp_path / ".bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / ".bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / '.bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'plugins'}")
    return tmp_path


def shortened(line: str) -> str:
    """The line with options that shorten it, and in the precision that this CPU has."""
    line = line if HAS_BF16 else line.replace("--precision bf16", "--precision fp32")
    command = re.search(r"\bavt(?:cli)? (\w+)", line)
    if WHOLE or command is None:
        return line
    trained = command[1] == "probe" and not re.search("--head (knn|ridge|logistic)", line)
    return f"{line} {SHORTER.get(command[1], '')}{' --epochs 1' if trained else ''}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_readme_is_walked_from_top_to_bottom(folder_of_a_user: Path) -> None:
    for kind, block in BLOCKS:
        for text in [block] if kind == "python" else block.splitlines():
            if any(words in text for words in LEFT_OUT):
                continue
            program = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euo", "pipefail", "-c", shortened(text)]
            ended = subprocess.run(program, cwd=folder_of_a_user, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, f"{text}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"


def test_the_readme_names_every_command_and_every_recipe() -> None:
    published = set(recipes.names()) - {"default", "fashion-mini-demo"}
    expected = [f"avt {name}" for name in get_command(app).commands] + [f"`{name}`" for name in published]

    assert [text for text in expected if text not in README] == []
    assert set(re.findall(r"avt recipes (?:show|copy) ([\w-]+)", README)) <= set(recipes.names())


def test_the_test_command_is_where_ci_looks_for_it() -> None:
    assert re.search(r"<!-- test command -->\n```bash\n[^\n]* && \.venv/bin/pytest\n```", README)


def test_the_fields_of_the_run_folder_are_those_that_a_run_writes(tiny_run: Path) -> None:
    named = re.findall(r"^      ([\w.]+)/? {2,}", README[README.index("runs/NAME/") :], re.MULTILINE)

    assert {path.name for path in tiny_run.iterdir()} - {"lock"} <= set(named)
