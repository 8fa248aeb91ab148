"""What the source of a plugin states, against the imported plugin."""

import inspect
import sys

import pytest
import timm

from avtcli import registry
from avtcli.inspection.plugin_source import PluginSource, read_plugin
from avtcli.plugin_options import option_helps

PLUGINS = [(info.kind, info.name) for info in registry.listing()]


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_the_source_states_what_the_imported_function_does(kind: str, name: str) -> None:
    read, info = read_plugin(kind, name), registry.info(kind, name)
    function = registry.load(info)
    parameters = inspect.signature(function).parameters

    assert read.summary == (inspect.getdoc(function) or "").splitlines()[0]
    assert read.takes_variant == any(p.kind is p.POSITIONAL_ONLY for p in parameters.values())
    assert set(read.options) == set(registry.options(info))
    for option, text in read.options.items():
        if text:
            assert str(parameters[option].default) in (text, text.capitalize())


def test_a_source_that_cannot_be_read_states_nothing(install) -> None:
    broken = {"absent": "absent:a", "torn": "torn:a", "other": "other:missing", "folder": "other.below:a"}
    install({"avtcli.objectives": broken}, torn="def a(:\n", other="raise SystemExit\n")

    assert [read_plugin("objective", name) for name in broken] == [PluginSource()] * 4
    assert not {"torn", "other"} & set(sys.modules)


def test_the_names_of_timms_models_are_timms_own() -> None:
    assert list(registry.completions("backbone", "timm")) == sorted(timm.list_models())
    assert registry.completions("backbone", "nin") == ()


def test_the_help_of_each_option_is_read_from_the_docstring() -> None:
    doc = "A.\n\nArgs:\n    one: first line\n        and: the second.\n    two (int): short.\n\nReturns:\n    three: no option."

    assert option_helps(doc) == {"one": "first line and: the second.", "two": "short."}
    assert option_helps("Without.") == {}
