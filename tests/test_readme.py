"""The README cannot rot: every command block is read against the commands as they are."""

import re
import shlex
from pathlib import Path

import pytest
from typer import Context
from typer.main import get_command

from avtcli import recipes
from avtcli.cli.app import app
from avtcli.config.resolution import options_from_texts

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
AVT = [line for line in LINES if line.startswith("avt ")]


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
        assert program == "python3" or re.fullmatch(r"\.venv/bin/(pip|avt|pytest|ruff|mypy|pre-commit)", program)


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
