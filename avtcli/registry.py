"""The bell-board: plugins by name, found through entry points and imported one at a time, when asked for.

A plugin is one function. Its signature is its option schema, its docstring its help. Ours are registered as anyone's are.
Listing and naming read the metadata of the installed distributions only: no plugin is imported, so none can break it.
"""

import contextlib
import importlib.metadata
import inspect
import re
import signal
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

from avtcli.errors import AvtError, nearest

CONTRACT_VERSION: Final = 1
"""The version of `avtcli.contracts` that this avt speaks. A plugin's module may say `CONTRACT_VERSION = 1` too."""

KINDS: Final = {
    "backbone": "Backbone",
    "transform": "TransformFamily",
    "dataset": "ImageData",
    "objective": "Objective",
}
"""Each kind of plugin, and the class in `avtcli.contracts` that its function returns."""

GIVEN: Final = {
    "backbone": ("in_channels", "image_size"),
    "transform": (),
    "dataset": ("data_dir",),
    "objective": ("vector_dim", "family"),
}
"""Parameters that the house fills in, so that they are no options: a plugin takes those it names."""


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
        """Where it comes from, for messages."""
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Option:
    """One option of a plugin, as its signature states it."""

    name: str
    annotation: str
    default: Any
    required: bool


def _entries(kind: str) -> list[PluginInfo]:
    found = importlib.metadata.entry_points(group=f"avtcli.{kind}s")
    infos = [
        PluginInfo(kind, e.name, e.value, e.dist.name if e.dist else "?", e.dist.version if e.dist else "?", e) for e in found
    ]
    # One distribution may be listed twice (an editable install beside its build): the same promise is one plugin.
    unique = {(i.name, i.value, i.distribution): i for i in infos}
    return sorted(unique.values(), key=lambda i: (i.name, i.distribution))


def names(kind: str) -> list[str]:
    """Return the names of all plugins of a kind, sorted, importing none of them."""
    return sorted({entry.name for entry in _entries(kind)})


def listing() -> list[PluginInfo]:
    """Return every installed plugin, sorted by kind and name, importing none of them."""
    return [entry for kind in KINDS for entry in _entries(kind)]


def info(kind: str, name: str) -> PluginInfo:
    """Look up one plugin.

    Raises:
        AvtError: if no plugin has the name (the message gives the nearest and the list), or several distributions do.
    """
    entries = _entries(kind)
    matches = [entry for entry in entries if entry.name == name]
    if len(matches) > 1:
        owners = " and ".join(f"{m.origin} ({m.value})" for m in matches)
        raise AvtError(f"Two distributions install a {kind} called '{name}': {owners}. Uninstall one of them.")
    if not matches:
        known = sorted({entry.name for entry in entries})
        installed = ", ".join(known) or "none"
        raise AvtError(f"No {kind} is called '{name}'. {nearest(name, [*known, *_variants(kind)])}Installed: {installed}.")
    return matches[0]


def _variants(kind: str) -> dict[str, str]:
    """The variants that plugins list, with the plugin of each; this imports those plugins, and a broken one lists none."""
    found: dict[str, str] = {}
    for entry in _entries(f"{kind}_variant"):
        with contextlib.suppress(AvtError):
            found |= dict.fromkeys(load(entry)(), entry.name)
    return found


def full_name(kind: str, spec: str) -> str:
    """Return a spec with its plugin: a bare name that no plugin has becomes `PLUGIN:NAME` where a plugin lists it.

    A plugin with many variants may list them in an entry point of the group `avtcli.KIND_variants`, under its own name: a
    function without parameters that returns names. It is asked only about names that no plugin has.
    """
    name, variant = split_name(spec)
    if variant is not None or name in names(kind):
        return spec
    plugin = _variants(kind).get(name)
    return spec if plugin is None else f"{plugin}:{name}"


@contextlib.contextmanager
def _interrupts_told_apart() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed, as against a plugin that raises KeyboardInterrupt itself."""
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note) if signal.getsignal(signal.SIGINT) is signal.default_int_handler else None
    try:
        yield lambda: bool(pressed)
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def load(plugin: PluginInfo) -> Callable[..., Any]:
    """Import one plugin and return its function.

    Raises:
        AvtError: if it does not import, is no function, or was written for another version of the contracts. The message
            names plugin, distribution, version and cause.
    """
    who = f"The {plugin.kind} '{plugin.name}' of {plugin.origin}"
    with contextlib.redirect_stdout(sys.stderr), _interrupts_told_apart() as pressed:
        try:
            function = plugin.entry_point.load()
        except BaseException as error:
            if pressed():
                raise
            cause = f"{type(error).__name__}: {error}".rstrip(": ")
            raise AvtError(f"{who} cannot be imported from {plugin.value}: {cause}. Mend or uninstall it.") from error
    if not callable(function) or inspect.isclass(function):
        raise AvtError(f"{who} is {type(function).__name__} {plugin.value}, expected a function. See `avt plugins new`.")
    stated = getattr(sys.modules.get(function.__module__), "CONTRACT_VERSION", CONTRACT_VERSION)
    if stated != CONTRACT_VERSION:
        raise AvtError(
            f"{who} was written for version {stated} of the plugin contracts; this avt speaks version {CONTRACT_VERSION}. "
            "Install a matching release of either."
        )
    return function  # type: ignore[no-any-return]


def _parameters(plugin: PluginInfo, function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(function).parameters)
    for p in parameters.values():
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            raise AvtError(
                f"The {plugin.kind} '{plugin.name}' of {plugin.origin} takes {p}: a plugin names each of its options."
            )
    return parameters


def options(plugin: PluginInfo) -> list[Option]:
    """Return the options that a plugin takes (this imports it).

    Raises:
        AvtError: if the plugin does not import, or hides its options behind *args or **kwargs.
    """
    parameters = _parameters(plugin, load(plugin))
    return [
        Option(
            name,
            p.annotation if isinstance(p.annotation, str) else inspect.formatannotation(p.annotation),
            None if p.default is p.empty else p.default,
            p.default is p.empty,
        )
        for name, p in parameters.items()
        if p.kind is p.KEYWORD_ONLY and name not in GIVEN[plugin.kind]
    ]


def split_name(spec: str) -> tuple[str, str | None]:
    """Split `NAME[:VARIANT]` at the first colon."""
    name, colon, variant = spec.partition(":")
    return name, variant if colon else None


def parse_value(text: str) -> Any:
    """Read an option's text: a list or table as TOML, anything else as it stands (the plugin's annotation says the type).

    Raises:
        AvtError: if a text that starts with a bracket is no TOML.
    """
    if text[:1] not in ("[", "{"):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise AvtError(f"{text!r} starts like a list or table and is no TOML: {error}.") from None


def build(kind: str, spec: str, values: Mapping[str, Any], **given: Any) -> Any:
    """Make what a plugin makes.

    Args:
        kind: backbone, transform, dataset or objective.
        spec: `NAME` or `NAME:VARIANT`; the variant becomes the plugin's first argument. See `full_name` for a bare variant.
        values: its options; texts are turned into the types that its signature states.
        **given: what the house fills in; the plugin gets those that it names.

    Raises:
        AvtError: for an unknown name, a broken plugin, an unknown or ill-typed option, or a plugin that returns another kind.
    """
    from pydantic import ConfigDict, ValidationError, validate_call

    from avtcli import contracts

    name, variant = split_name(full_name(kind, spec))
    plugin = info(kind, name)
    function = load(plugin)
    parameters = _parameters(plugin, function)
    known = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and n not in GIVEN[kind]}
    takes_variant = any(p.kind is p.POSITIONAL_ONLY for p in parameters.values())
    if variant is not None and not takes_variant:
        raise AvtError(f"The {kind} '{name}' takes nothing after a colon, found '{variant}'. Write `{name}` alone.")
    for key in values:
        if key not in known:
            taken = ", ".join(sorted(known)) or "none"
            raise AvtError(f"The {kind} '{name}' has no option '{key}'. {nearest(key, known)}Its options: {taken}.")
    given = {key: value for key, value in given.items() if key in parameters}
    config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        checked = validate_call(config=config)(function)
        made = checked(*([variant] if variant is not None else []), **given, **values)
    except NameError as error:
        raise AvtError(
            f"The {kind} '{name}' of {plugin.origin} has an annotation that does not resolve ({error}). "
            "Import what its signature names for real, not under TYPE_CHECKING."
        ) from error
    except ValidationError as error:
        if error.title != getattr(function, "__name__", ""):
            raise
        raise AvtError(_option_errors(kind, name, error)) from None
    expected = getattr(contracts, KINDS[kind])
    if not isinstance(made, expected):
        raise AvtError(f"The {kind} '{name}' of {plugin.origin} returned a {type(made).__name__}, expected a {KINDS[kind]}.")
    return made


def _option_errors(kind: str, name: str, error: Any) -> str:
    lines = []
    for detail in error.errors():
        where = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "missing_positional_only_argument":
            lines.append(f"it needs something after a colon, as in `{name}:VARIANT`")
        elif detail["type"].startswith("missing"):
            lines.append(f"option '{where}' is needed: give `-o {kind}.{where}=VALUE`")
        else:
            message = re.sub(r"^Input should be", "should be", detail["msg"])
            lines.append(f"option '{where}' {message}, found {detail['input']!r}")
    return f"The {kind} '{name}' does not take these options: " + "; ".join(lines) + "."
