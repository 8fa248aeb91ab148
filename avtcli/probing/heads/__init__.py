"""Heads by name, one file each: a function of the file's name whose keyword-only parameters are the head's options."""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from avtcli.config.components import Plugin
    from avtcli.probing.head import Head

HEADS: Final = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))
"""The names of all heads; a file whose name begins with an underscore is not a head."""


def resolve_head(plugin: "Plugin") -> "Head":
    """Build a head from its name and options; see `resolve_options`."""
    head: Head = _function_of(plugin.name)(**resolve_options(plugin))
    return head


def resolve_options(plugin: "Plugin") -> dict[str, Any]:
    """Check the options of a head, all at once, and fill in defaults; a tuple may be given as text with commas."""
    from inspect import signature

    from avtcli.plugin_options import bind_options

    function, who = _function_of(plugin.name), f"The head '{plugin.name}'"
    several = {name for name, p in signature(function).parameters.items() if isinstance(p.default, tuple)}
    values = {k: v.split(",") if k in several and isinstance(v, str) else v for k, v in plugin.options.items()}
    return bind_options(function, None, values, kind="head", name=plugin.name, who=who)[1]


def _function_of(name: str) -> Any:
    from avtcli.errors import AvtError, nearest

    if name not in HEADS:
        raise AvtError(f"No head is called '{name}'. {nearest(name, HEADS)}Heads: {', '.join(HEADS)}.")
    return getattr(import_module(f"{__name__}.{name}"), name)
