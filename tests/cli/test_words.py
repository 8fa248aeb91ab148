"""The project's texts use the terms of the field."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from avtcli.cli.app import COMMANDS, app, load_command

ROOT = Path(__file__).parents[2]
PACKAGES = sorted({str(path.parent.relative_to(ROOT)) for top in ("avtcli", "plugins") for path in (ROOT / top).rglob("*.py")})

PRIVATE_WORDS = re.compile(
    r"\b("
    r"told|tells?|anew|beside|(?:so|as) many|of (?:its|your) own|in words|laws?|honest likelihood|moved images?|quarter turns?|"
    r"linear reader|line fitted to frozen features|closed heads?|is minimised|where the arithmetic happens|of the arithmetic|"
    r"(?:is|are) (?:not )?whole|whole way|whole checkpoints?|lost in rounding|take[ns]? (?:the weights )?away|and leave|"
    r"all is well|plain way|front door|back door|bell-?board|cellars?|deeds?|promises?|the house|floors|"
    r"strangers?|upkeep|without dust|unkept"
    r")\b(?!-)",
    re.IGNORECASE,
)
"""Words that a reader outside of the project would not expect."""


def private_words(text: str) -> list[str]:
    """The words in a text that another term should replace."""
    return PRIVATE_WORDS.findall(" ".join(text.split()))


def command_lines() -> Iterator[str]:
    """Every command and sub-command."""
    yield ""
    for name in COMMANDS:
        yield name
        yield from (f"{name} {sub}" for sub in getattr(load_command(name), "commands", ()))


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """The line and text of each string in a source file, docstrings and the literal parts of f-strings included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@pytest.mark.parametrize("line", [*command_lines()])
def test_the_help_of_a_command_uses_the_terms_of_the_field(line: str) -> None:
    result = CliRunner().invoke(app, [*line.split(), "--help"])

    assert result.exit_code == 0
    assert private_words(re.sub(r"[│╭╮╰╯─]", " ", result.stdout)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_messages_and_docstrings_use_the_terms_of_the_field(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {', '.join(words)}"
        for path in sorted((ROOT / package).glob("*.py"))
        for number, text in literals(path)
        if (words := private_words(text))
    ]

    assert found == [], "\n".join(found)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_shows_the_first_line_of_each_help(name: str) -> None:
    assert load_command(name).help.split("\n")[0] == COMMANDS[name][2]
