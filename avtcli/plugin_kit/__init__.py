"""For authors of plugins: conformance checks, and a package to start from."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avtcli.plugin_kit.checking import Check


def check_plugin(spec: str, *, kind: str | None = None) -> "list[Check]":
    """Run the conformance checks on an installed plugin, as `avt plugins check` does.

    Example::

        assert [check for check in check_plugin("mine", kind="backbone") if not check.ok] == []

    Args:
        spec: `NAME` or `NAME:VARIANT`; for a data set `NAME:PATH`.
        kind: a kind of plugin; left out, the only kind with that name.

    Returns:
        The checks, each with its `problem`, which is empty for a check that passed.

    Raises:
        AvtError: if there is no such plugin, it cannot be imported, or it refuses to be built, as a data set that is missing.
    """
    from avtcli.plugin_kit.plugin_checks import run_all

    return list(run_all(spec, kind=kind))
