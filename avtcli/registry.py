"""The plugin registry: plugins by name, found through entry points and imported one at a time, on request.

A plugin is one function. Its signature is its option schema, its docstring its help. The built-in plugins are registered as
all others are. Listing and naming read the metadata of the installed distributions only, so that no plugin can break them.
"""

import contextlib
import importlib.metadata
import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

from avtcli.errors import AvtError, nearest
from avtcli.plugin_options import SUMMED, bind_options, option_names, plain, split_sum

CONTRACT_VERSION: Final = 1
"""The version of `avtcli.contracts`. A plugin's module may state `CONTRACT_VERSION = 1` too."""

KINDS: Final = {
    "backbone": "Backbone",
    "transform": "TransformFamily",
    "dataset": "ImageData",
    "objective": "Objective",
    "exporter": "Exporter",
    "tracker": "Tracker",
}
"""Each kind of plugin, and the class in `avtcli.contracts` that its function returns."""


class InputSize(NamedTuple):
    """The square images that a backbone is made for: their side, and the step that sides are multiples of, in pixels."""

    side: int
    step: int = 1


INPUT_SIZE: Final = InputSize(224)
"""The images of most backbones."""


@dataclass(frozen=True)
class PluginInfo:
    """A plugin before it is imported."""

    kind: str
    name: str
    value: str
    distribution: str
    version: str
    entry_point: importlib.metadata.EntryPoint

    @property
    def origin(self) -> str:
        """Its distribution with the version."""
        return f"{self.distribution} {self.version}"

    def __str__(self) -> str:
        return f"The {self.kind} '{self.name}' of {self.origin}"


def _entries(kind: str) -> list[PluginInfo]:
    return entries_on(tuple(sys.path), kind)


@cache
def entries_on(path: tuple[str, ...], kind: str) -> list[PluginInfo]:
    """Return the plugins of a kind on a module path, now `sys.path`; read once, as it parses the metadata of all packages."""
    unique = {}  # an editable install next to its build lists one distribution twice
    for entry in importlib.metadata.entry_points(group=f"avtcli.{kind}s"):
        name, version = (entry.dist.name, entry.dist.version) if entry.dist else ("?", "?")
        unique[entry.name, name, entry.value] = PluginInfo(kind, entry.name, entry.value, name, version, entry)
    return [unique[key] for key in sorted(unique)]


def names(kind: str) -> list[str]:
    """Return the names of all plugins of a kind, sorted, importing none of them."""
    return sorted({entry.name for entry in _entries(kind)})


def listing(*kinds: str) -> list[PluginInfo]:
    """Return every installed plugin, or those of some kinds, sorted by kind and name, importing none of them."""
    return [entry for kind in kinds or KINDS for entry in _entries(kind)]


def info(kind: str, name: str) -> PluginInfo:
    """Look up one plugin.

    Raises:
        AvtError: if no plugin has the name (the message gives the nearest and the list), or several distributions do.
    """
    matches = [entry for entry in _entries(kind) if entry.name == name]
    if len(matches) > 1:
        owners = " and ".join(f"{m.origin} ({m.value})" for m in matches)
        raise AvtError(f"Two distributions install a {kind} called '{name}': {owners}. Uninstall one of them.")
    if not matches:
        if kind == "dataset" and os.path.exists(name):
            own = "is a folder: write `folder" if os.path.isdir(name) else "is a file: where it lists images write `files"
            raise AvtError(f"No dataset is called '{name}'. {name} {own}:{name}`.")
        known, lists = names(kind), provided(f"{kind}_variant")
        hint = nearest(name, [*known, *(variant for variants in lists.values() for variant in variants)])
        broken = [entry.name for entry in _entries(f"{kind}_variant") if entry.name not in lists]
        unlisted = f" The list of {' and '.join(broken)} cannot be read: see `avt doctor`." if broken else ""
        raise AvtError(f"No {kind} is called '{name}'. {hint}Installed: {', '.join(known) or 'none'}.{unlisted}")
    return matches[0]


def split_name(spec: str) -> tuple[str, str | None]:
    """Split `NAME[:VARIANT]` at the first colon."""
    name, _, variant = spec.partition(":")
    return name, variant or None


def full_name(kind: str, spec: str) -> str:
    """Return a spec with its plugin: a bare name that no plugin has becomes `PLUGIN:NAME` where a plugin lists it.

    A plugin with many variants may list them in an entry point of the group `avtcli.KIND_variants`, under its own name: a
    function without parameters that returns names. It is called only for names that no plugin has.
    """
    name, variant = split_name(spec)
    if variant is not None or name in names(kind):
        return spec
    plugin = _variants(kind).get(name)
    return spec if plugin is None else f"{plugin}:{name}"


def _variants(kind: str) -> dict[str, str]:
    return {variant: name for name, variants in provided(f"{kind}_variant").items() for variant in variants}


def completions(kind: str, name: str) -> Collection[str]:
    """Return what shell completion offers after `NAME:`, from the entry point NAME of the group `avtcli.KIND_completions`.

    It is a function without parameters that returns names, in a module that imports nothing slow; none where there is none.
    """
    found = [entry for entry in _entries(f"{kind}_completion") if entry.name == name]
    return load(found[0])() if found else ()


def provided(group: str, *arguments: Any) -> dict[str, Any]:
    """Call every function of the entry-point group `avtcli.GROUPs`; what they return, by name, without the broken ones."""
    found: dict[str, Any] = {}
    for entry in _entries(group):
        with contextlib.suppress(Exception, SystemExit):  # a plugin's code can fail in any way
            found[entry.name] = load(entry)(*arguments)
    return found


def input_size(backbone: str) -> InputSize:
    """Return the images that a backbone is made for, `INPUT_SIZE` where it states none.

    Its plugin states it in an entry point of the group `avtcli.backbone_sizes`, under its own name: a function of the
    variant, or none without one, that returns side and step.
    """
    name, variant = split_name(full_name("backbone", backbone))
    entry = next((entry for entry in _entries("backbone_size") if entry.name == name), None)
    return INPUT_SIZE if entry is None else InputSize(*load(entry)(variant))


def load(plugin: PluginInfo) -> Callable[..., Any]:
    """Import one plugin and return its function.

    Raises:
        AvtError: if it does not import, is no function, or was written for another version of the contracts.
    """
    with contextlib.redirect_stdout(sys.stderr):
        try:
            function = plugin.entry_point.load()
        except (Exception, SystemExit) as error:
            cause = f"{type(error).__name__}: {error}".rstrip(": ")
            way_out = "Repair or uninstall it, see `avt doctor`"
            raise AvtError(f"{plugin} cannot be imported from {plugin.value}: {cause}. {way_out}.") from error
    if not callable(function) or inspect.isclass(function):
        raise AvtError(f"{plugin} is {type(function).__name__} {plugin.value}, expected a function. See `avt plugins new`.")
    stated = getattr(sys.modules.get(function.__module__), "CONTRACT_VERSION", CONTRACT_VERSION)
    if stated != CONTRACT_VERSION:
        ours = f"this avt implements version {CONTRACT_VERSION}. Install a matching release of either"
        raise AvtError(f"{plugin} was written for version {stated} of the plugin contracts; {ours}.")
    return function  # type: ignore[no-any-return]


def options(plugin: PluginInfo) -> list[str]:
    """Import a plugin and return the names of its options."""
    return option_names(plugin.kind, load(plugin), who=str(plugin))


def _bind(
    kind: str, spec: str, values: Mapping[str, Any], *, weighted: bool = False
) -> tuple[PluginInfo, tuple[Any, ...], dict[str, Any]]:
    name, variant = split_name(full_name(kind, spec))
    plugin = info(kind, name)
    return plugin, *bind_options(load(plugin), variant, values, kind=kind, name=name, who=str(plugin), weighted=weighted)


def resolve(kind: str, spec: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a plugin's full spec and every option, defaults included, in its annotated type, as JSON and TOML hold them.

    Options whose value is None are left out; a variant that is a path is absolute. What is resolved resolves to itself. For a
    sum `a+b` the options are tables by the parts' names; those of an objective's parts have its weight, 1 by default.

    Raises:
        AvtError: for an unknown name, a broken plugin, or an unknown or ill-typed option.
    """
    if len(parts := split_sum(kind, spec, values)) > 1:
        bound = {split_name(part)[0]: _bind(kind, part, own, weighted=SUMMED[kind])[2] for part, own in parts}
        return spec, {part: plain(options) for part, options in bound.items()}
    spec = full_name(kind, spec)
    plugin, positional, options = _bind(kind, spec, values)
    return spec if split_name(spec)[1] is None else f"{plugin.name}:{positional[0]}", plain(options)


def takes(kind: str, spec: str, parameter: str) -> bool:
    """Whether a plugin takes a parameter that its caller fills in, see `GIVEN`."""
    return parameter in inspect.signature(load(info(kind, split_name(full_name(kind, spec))[0]))).parameters


def build(kind: str, spec: str, values: Mapping[str, Any], **given: Any) -> Any:
    """Call a plugin and return what it makes.

    Args:
        kind: one of `KINDS`.
        spec: `NAME` or `NAME:VARIANT`; the variant becomes the plugin's first argument. See `full_name` for a bare variant.
        values: its options; texts are converted to the types that its signature states.
        **given: what the caller fills in, see `GIVEN`; the plugin gets those that it names.

    Raises:
        AvtError: for an unknown name, a broken plugin, an unknown or ill-typed option, or a plugin that returns another kind.
    """
    from avtcli import contracts

    plugin, positional, typed = _bind(kind, spec, values)
    function = load(plugin)
    taken = inspect.signature(function).parameters
    made = function(*positional, **{key: value for key, value in given.items() if key in taken}, **typed)
    if not isinstance(made, getattr(contracts, KINDS[kind])):
        raise AvtError(f"{plugin} returned a {type(made).__name__}, expected {KINDS[kind]}.")
    return made
