"""The plugin registry: plugins are found and built by name, and broken ones are named."""

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from avtcli import registry
from avtcli.errors import AvtError
from avtcli.plugin_options import parse_value

MODULE = """
from avtcli.contracts import Objective, TransformFamily, Target, Loss
{head}

class Fixed(Objective):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.noise_scale = value
    def forward(self, codes, targets) -> Loss:
        return Loss(codes[0].mean(1))

def plugin({signature}):
    return {made}
"""


@pytest.fixture
def install(install: Callable[..., None]) -> Callable[..., None]:
    """Install a distribution with one objective."""

    def make(module: str, text: str, *, distribution: str = "stranger", name: str = "fixed") -> None:
        install({"avtcli.objectives": {name: f"{module}:plugin"}}, distribution=distribution, **{module: text})

    return make


def source(signature: str = "*, value: float = 0.5", made: str = "Fixed(value)", head: str = "") -> str:
    return MODULE.format(signature=signature, made=made, head=head)


def test_an_installed_plugin_is_built_by_name_with_options_from_text(install) -> None:
    install("stranger_a", source())

    built = registry.build("objective", "fixed", {"value": "0.25"})

    assert built.noise_scale == 0.25


def test_the_metadata_of_packages_are_read_once_for_a_module_path(install, monkeypatch: pytest.MonkeyPatch) -> None:
    read, asked = importlib.metadata.entry_points, []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **of: (asked.append(of), read(**of))[1])
    install("stranger_q", source())
    first = registry.names("objective")

    assert (registry.names("objective"), "fixed" in first, asked) == (first, True, [{"group": "avtcli.objectives"}])
    monkeypatch.setattr(sys, "path", sys.path[1:])
    assert "fixed" not in registry.names("objective")


def test_the_options_of_a_plugin_are_its_signature() -> None:
    plugin = registry.info("backbone", "nin")

    assert registry.options(plugin) == ["width"]


def test_resolved_options_are_complete_typed_and_resolve_to_themselves(install) -> None:
    signature = "*, value: float = 1, pair: tuple[float, ...] = (1, 2), folder: 'Path' = 'x', left: int | None = None"
    install("stranger_k", source(signature, head="from pathlib import Path"))

    name, resolved = registry.resolve("objective", "fixed", {"value": "0.25"})

    assert (name, resolved) == ("fixed", {"value": 0.25, "pair": [1.0, 2.0], "folder": str(Path.cwd() / "x")})
    assert [type(value) for value in (resolved["value"], *resolved["pair"])] == [float] * 3
    assert registry.resolve("objective", name, resolved) == (name, resolved)


def test_an_unknown_name_gives_the_nearest_and_the_list() -> None:
    with pytest.raises(AvtError, match=r"No backbone is called 'nni'\. Did you mean 'nin'\? Installed: .*nin"):
        registry.build("backbone", "nni", {})


def test_an_unknown_option_gives_the_nearest_and_the_list() -> None:
    with pytest.raises(AvtError, match=r"'nin' has no option 'widht'\. Did you mean 'width'\? Its options: width"):
        registry.build("backbone", "nin", {"widht": "1"}, in_channels=1)


@pytest.mark.parametrize("bad", ["abc", "nan", "[1, 2]"])
def test_an_ill_typed_option_is_refused_by_name(bad: str) -> None:
    with pytest.raises(AvtError, match="'nin' does not take these options: option 'width' should be a"):
        registry.build("backbone", "nin", {"width": parse_value(bad)}, in_channels=1)


def test_a_parameter_that_the_caller_gives_is_no_option() -> None:
    with pytest.raises(AvtError, match="has no option 'in_channels'"):
        registry.build("backbone", "nin", {"in_channels": "3"}, in_channels=1)


def test_a_variant_is_refused_where_there_is_none() -> None:
    with pytest.raises(AvtError, match="takes nothing after a colon, found 'big'"):
        registry.build("backbone", "nin:big", {}, in_channels=1)


def test_a_list_is_read_as_toml_and_other_text_stays_text() -> None:
    assert parse_value("[1, 2.5]") == [1, 2.5]
    assert parse_value("123") == "123"
    with pytest.raises(AvtError, match="starts like a list or table and is no TOML"):
        parse_value("[1, ")


@pytest.mark.parametrize(
    ("head", "cause"),
    [
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_broken_plugin_hurts_only_who_asks_for_it(install, head: str, cause: str) -> None:
    install("stranger_b", source(head=head))

    assert "fixed" in registry.names("objective")
    assert registry.build("backbone", "nin", {}, in_channels=1).code_tap == "conv2"
    with pytest.raises(AvtError, match=rf"'fixed' of stranger 3\.1 cannot be imported from stranger_b:plugin: {cause}"):
        registry.build("objective", "fixed", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (source(head="CONTRACT_VERSION = 99"), "written for version 99 of the plugin contracts; this avt implements version 1"),
        (source(made="'nothing'"), r"'fixed' of stranger 3\.1 returned a str, expected Objective"),
        (source(signature="**options", made="Fixed(1.0)"), r"takes \*\*options: a plugin names each of its options"),
        (
            "from __future__ import annotations\n" + source(signature="*, value: NotImported = 1.0"),
            "Import what its signature names at runtime, not under",
        ),
    ],
)
def test_a_plugin_that_breaks_the_rules_is_refused(install, text: str, message: str) -> None:
    install("stranger_c", text)

    with pytest.raises(AvtError, match=message):
        registry.build("objective", "fixed", {})


def test_two_distributions_with_one_name_are_an_error_that_names_both(install) -> None:
    install("stranger_g", source())
    install("stranger_h", source(), distribution="other")

    with pytest.raises(AvtError, match=r"Two distributions install .*other 3\.1 .* and stranger 3\.1"):
        registry.info("objective", "fixed")


def test_a_plugin_that_prints_at_import_leaves_stdout_clean(install, capsys: pytest.CaptureFixture[str]) -> None:
    install("stranger_i", source(head="print('hello')"))
    registry.build("objective", "fixed", {})

    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_a_plugins_own_validation_error_is_not_taken_for_bad_options(install) -> None:
    head = "from pydantic import BaseModel, ValidationError\nclass Inner(BaseModel):\n    x: int"
    install("stranger_j", source(head=head, made="Inner(x='no')"))

    with pytest.raises(Exception, match="validation error for Inner"):
        registry.build("objective", "fixed", {})
