"""What the source of a plugin states, read without importing it: help, options, and whether it takes a variant."""

import ast
import contextlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from typing import Any, Final, TypeVar

from avtcli import registry
from avtcli.plugin_options import GIVEN

Node = TypeVar("Node", ast.FunctionDef, ast.ClassDef)
ADDED: Final = {"geometric": "avtcli.geometry.geometric_family:WarpOptions"}
"""Decorators that add options to a plugin, and the dataclass of these."""


@dataclass(frozen=True)
class PluginSource:
    """The function of a plugin as its source states it.

    Attributes:
        summary: first line of the docstring; empty if there is none.
        takes_variant: whether something may follow the plugin's name after a colon.
        options: name -> default, as text that `-o` takes; empty where there is none, or it is no plain value.
    """

    summary: str = ""
    takes_variant: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


def read_plugin(kind: str, name: str) -> PluginSource:
    """Read an installed plugin; what its source does not state plainly, or cannot be read, is left out."""
    found = [info for info in registry.listing(kind) if info.name == name]
    return read_function(kind, found[0].value) if len(found) == 1 else PluginSource()


def read_function(kind: str, value: str) -> PluginSource:
    """Read the function at MODULE:NAME; see `read_plugin`."""
    with contextlib.suppress(Exception):  # a plugin's source, and the finder of its package, can be wrong in any way
        node = _definition(value, ast.FunctionDef)
        pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        options = {a.arg: _default_text(default) for a, default in pairs if a.arg not in GIVEN.get(kind, ())}
        for decorator in node.decorator_list:
            options |= _added_by(decorator)
        return PluginSource((ast.get_docstring(node) or "").partition("\n")[0], bool(node.args.posonlyargs), options)
    return PluginSource()


def _definition(value: str, kind: type[Node]) -> Node:
    module, _, name = value.partition(":")
    return next(node for node in ast.parse(_source_of(module) or "").body if isinstance(node, kind) and node.name == name)


def _added_by(decorator: ast.expr) -> dict[str, str]:
    call = decorator if isinstance(decorator, ast.Call) else ast.Call(decorator, [], [])
    if ast.unparse(call.func) not in ADDED:
        return {}
    fields = _definition(ADDED[ast.unparse(call.func)], ast.ClassDef).body
    options = {ast.unparse(f.target): _default_text(f.value) for f in fields if isinstance(f, ast.AnnAssign)}
    return {**options, **{k.arg: _default_text(k.value) for k in call.keywords if k.arg}}


def _default_text(default: ast.expr | None) -> str:
    value: Any = None
    with contextlib.suppress(ValueError):
        value = None if default is None else ast.literal_eval(default)
    return option_text(value)


def option_text(value: Any) -> str:
    """Return a number, text or truth value as `-o` takes it; an empty text for anything else."""
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int | float | str) else ""


def _source_of(module: str) -> str | None:
    """Find the source of a module without importing the packages that it is in."""
    top, *below = module.split(".")
    spec, path = importlib.util.find_spec(top), top
    for name in below:
        path = f"{path}.{name}"
        spec = None if spec is None else PathFinder.find_spec(path, spec.submodule_search_locations)
    source: str | None = getattr(spec.loader, "get_source", lambda name: None)(module) if spec else None
    return source
