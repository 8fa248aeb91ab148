"""Ten kinds of broken plugins installed at once: every other command works, and each is named when used."""

import importlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from avtcli import registry
from avtcli.plugin_kit import plugin_checks
from tests.hostile.broken import KINDS, imported, install, name_of
from tests.support import Result

pytestmark = pytest.mark.usefixtures("few_held_out_images")

TINY = "-o backbone.width=0.05 --limit-train 40 --batch-size 16 --eval-every 0"
PRETRAIN = f"pretrain {TINY} --dry-run --objective"
HARMLESS = [
    "--help",
    "--version",
    "pretrain --help",
    "plugins list",
    "plugins list --json",
    "plugins check aet",
    "plugins new mine",
    "recipes list",
    "gen-homographies bank.safetensors --size 32 --count 10",
    f"pretrain {TINY} --dry-run",
    f"pretrain {TINY} --max-steps 2 --out run",
    "probe RUN --limit-train 40 --epochs 1 --out probe.json",
    "export RUN --out encoder.safetensors",
]
DEAF = [kind for kind, broken in KINDS.items() if not broken.loads]
"""Those that never do their work."""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    install(folder)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    registry.entries_on.cache_clear()
    yield folder
    for kind in KINDS:
        sys.modules.pop(f"hostile_{kind}", None)


def assert_named(kind: str, stderr: str) -> None:
    """The message names plugin, distribution, version and cause."""
    assert re.search(KINDS[kind].cause, stderr)
    assert re.search(rf"'{name_of(kind)}'", stderr)
    assert re.search(rf"hostile_{kind} 6\.6", stderr)
    assert stderr.startswith("error: ")
    assert "Traceback" not in stderr


@pytest.mark.parametrize("line", HARMLESS)
def test_every_other_command_works_and_imports_none_of_them(
    avt: Callable[..., Result], hostile: Path, tiny_run: Path, tmp_path: Path, line: str
) -> None:
    result = avt(line.replace("RUN", str(shutil.copytree(tiny_run, tmp_path / "given"))))

    assert result.code == 0, result.stderr
    assert imported(hostile) == set()


@pytest.mark.parametrize("line", ["--help", "plugins list", f"pretrain {TINY} --dry-run"])
def test_they_work_in_a_process_of_their_own_too(avt_process: Callable[..., Result], hostile: Path, line: str) -> None:
    result = avt_process(line, PYTHONPATH=str(hostile))

    assert result.code == 0, result.stderr
    assert imported(hostile) == set()


def test_all_are_listed_with_their_distributions(avt: Callable[..., Result], hostile: Path) -> None:
    listed = [plugin for plugin in avt("plugins list --json").json if plugin["name"].startswith("hostile-")]

    assert {plugin["name"] for plugin in listed} == {name_of(kind) for kind in KINDS}
    assert len(listed) == 11  # one comes twice
    assert {plugin["version"] for plugin in listed} == {"6.6"}


@pytest.mark.parametrize(("line", "kind"), [*((PRETRAIN, kind) for kind in DEAF), ("plugins check", "dependency")])
def test_using_a_broken_plugin_gives_its_name_distribution_and_cause(
    avt: Callable[..., Result], hostile: Path, line: str, kind: str
) -> None:
    result = avt(f"{line} {name_of(kind)}")

    assert (result.code, result.stdout) == (2, "")
    assert_named(kind, result.stderr)


def test_one_that_exits_does_not_end_the_command_silently(avt_process: Callable[..., Result], hostile: Path) -> None:
    result = avt_process(f"{PRETRAIN} {name_of('systemexit')}", PYTHONPATH=str(hostile))

    assert (result.code, result.stdout) == (2, "")
    assert_named("systemexit", result.stderr)


def test_one_that_prints_leaves_stdout_clean_and_fails_its_check(avt: Callable[..., Result], hostile: Path) -> None:
    pretrained = avt(f"pretrain {TINY} --max-steps 2 --out run --json --objective hostile-prints")
    checked = avt("plugins check hostile-prints --json")

    assert (pretrained.code, pretrained.json["steps"]) == (0, 2)
    assert (checked.code, checked.json["ok"]) == (1, False)
    assert [check["check"] for check in checked.json["checks"] if not check["ok"]] == ["importing it prints nothing"]
    assert_named("prints", checked.stderr)


def test_one_that_sleeps_is_stopped_and_named_by_its_check(
    avt: Callable[..., Result], hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_checks, "IMPORT_SECONDS", 0.5)
    began = time.monotonic()
    result = avt("plugins check hostile-sleeps")

    assert time.monotonic() - began < 50
    assert result.code == 1
    assert_named("sleeps", result.stderr)
    assert "hostile_sleeps" not in sys.modules
