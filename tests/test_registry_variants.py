"""Bare names: a plugin with many variants lists them, and is asked only about names that no plugin has."""

import sys
from collections.abc import Callable

import pytest

from avtcli import registry
from avtcli.errors import AvtError

Install = Callable[[str, str], None]


@pytest.fixture
def install(install: Callable[..., None]) -> Install:
    """Install a distribution with a list of data sets' variants."""

    def make(module: str, text: str) -> None:
        install({"avtcli.dataset_variants": {"zoo": f"{module}:variants"}}, distribution=module, **{module: text})

    return make


def test_an_installed_plugins_variants_are_found_by_bare_names(install: Install) -> None:
    install("zoo_a", "def variants():\n    return ['lions', 'tigers']")

    assert registry.full_name("dataset", "lions") == "zoo:lions"
    assert registry.full_name("dataset", "bears") == "bears"


def test_the_list_is_not_imported_for_a_name_that_a_plugin_has(install: Install) -> None:
    install("zoo_b", "raise SystemExit")

    assert registry.full_name("dataset", "cifar10") == "cifar10"
    assert registry.full_name("dataset", "zoo:lions") == "zoo:lions"
    assert "zoo_b" not in sys.modules


def test_a_broken_list_lists_none(install: Install) -> None:
    install("zoo_c", "def variants():\n    raise SystemExit")

    assert registry.full_name("dataset", "lions") == "lions"
    with pytest.raises(AvtError, match=r"No dataset is called 'lions'\. .*\. The list of zoo cannot be read: see `avt doctor`"):
        registry.build("dataset", "lions", {})


def test_an_unknown_name_is_compared_with_the_variants_too(install: Install) -> None:
    install("zoo_d", "def variants():\n    return ['lions']")

    with pytest.raises(AvtError, match=r"No dataset is called 'loins'\. Did you mean 'lions'\? Installed: .*cifar10"):
        registry.build("dataset", "loins", {})
