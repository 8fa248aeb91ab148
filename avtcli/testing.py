"""For authors of plugins: the conformance battery, to be called from a test of their own."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avtcli.plugin_kit.checking import Check


def check_plugin(spec: str, *, kind: str | None = None) -> "list[Check]":
    """Try every promise that an installed plugin makes, as `avt plugins check` does.

    Example::

        assert [check for check in check_plugin("mine", kind="backbone") if not check.ok] == []

    Args:
        spec: `NAME` or `NAME:VARIANT`; for a data set `NAME:PATH`.
        kind: backbone, transform, dataset or objective; left out, the only kind with that name.

    Returns:
        One check a promise, with its `problem`, which is empty where the promise is kept.

    Raises:
        AvtError: if there is no such plugin, or it cannot be imported or built.
    """
    from avtcli.plugin_kit.plugin_checks import check_plugin as check

    return check(spec, kind=kind)
