"""What is known of a plugin before it makes anything: what its import costs, and what it says of itself."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from avtcli import registry
from avtcli.plugin_kit.checking import expect
from avtcli.registry import PluginInfo

IMPORT_SECONDS: Final = 20.0
"""The longest that a plugin's import may take, on top of the contracts' own, which is torch's."""
HEAVY: Final = ("timm", "torchvision", "transformers", "scipy", "pandas", "matplotlib")
"""Modules that are worth telling when an import pulls them in."""

_IMPORT = """
import contextlib, importlib, io, json, sys, time
import avtcli.contracts
print("ready", flush=True)
said, before, start = io.StringIO(), set(sys.modules), time.monotonic()
with contextlib.redirect_stdout(said):
    importlib.import_module(sys.argv[1])
seconds = time.monotonic() - start
print(json.dumps({"seconds": seconds, "said": said.getvalue(), "modules": sorted(set(sys.modules) - before)}))
"""


@dataclass(frozen=True)
class FreshImport:
    """How the import of a plugin's module went in a process of its own.

    Attributes:
        module: its name.
        seconds: what it took; none where it was stopped at IMPORT_SECONDS.
        failed: whether it ended in an error.
        said: what it printed.
        pulled: modules of `HEAVY` that came with it.
    """

    module: str
    seconds: float | None = None
    failed: bool = False
    said: str = ""
    pulled: tuple[str, ...] = ()


def import_afresh(info: PluginInfo) -> FreshImport:
    """Import a plugin's module in a process of its own, for no longer than IMPORT_SECONDS."""
    module = info.entry_point.module
    with subprocess.Popen(
        [sys.executable, "-c", _IMPORT, module],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,  # so that reading the first line takes no more than it
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as child:
        assert child.stdout is not None  # PIPE
        child.stdout.readline()  # "ready"
        try:
            told = child.communicate(timeout=IMPORT_SECONDS)[0]
        except subprocess.TimeoutExpired:
            child.kill()
            return FreshImport(module)
    if child.returncode != 0 or not told:
        return FreshImport(module, seconds=0.0, failed=True)
    found = json.loads(told.splitlines()[-1])
    pulled = tuple(name for name in HEAVY if name in found["modules"])
    return FreshImport(module, seconds=found["seconds"], said=found["said"], pulled=pulled)


def it_imports_in_time(fresh: FreshImport) -> str:
    """Within IMPORT_SECONDS after the contracts, in a fresh process."""
    expect(
        fresh.seconds is not None, f"importing {fresh.module} takes more than {IMPORT_SECONDS:g} s: import late what is heavy"
    )
    expect(not fresh.failed, f"{fresh.module} imports here and fails in a fresh process: does it lean on another's import?")
    return f"{fresh.seconds:.2f} s" + (f", pulls in {', '.join(fresh.pulled)}" if fresh.pulled else "")


def importing_it_prints_nothing(fresh: FreshImport) -> str:
    """Nothing happens at import."""
    expect(not fresh.said, f"importing {fresh.module} prints {fresh.said[:80]!r}")
    return ""


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin after it is imported."""

    info: PluginInfo
    function: Callable[..., Any]

    @property
    def doc(self) -> str:
        """Its docstring."""
        return inspect.getdoc(self.function) or ""


def it_says_what_it_is(plugin: LoadedPlugin) -> str:
    """The first line of its docstring, which is its help."""
    expect(bool(plugin.doc), f"{plugin.info.value} has no docstring: its first line is the plugin's help")
    return plugin.doc.splitlines()[0]


def every_option_is_typed_and_documented(plugin: LoadedPlugin) -> str:
    """Each has a type in the signature, and a line among the docstring's Args."""
    options = registry.options(plugin.info)
    parameters = inspect.signature(plugin.function).parameters
    documented = set(re.findall(r"^\s+(\w+)(?: \([^)]*\))?:", plugin.doc.partition("\nArgs:")[2], re.MULTILINE))
    for option in options:
        typed = parameters[option.name].annotation is not inspect.Parameter.empty
        expect(typed, f"the option {option.name} has no type in the signature, so that a text could not be read as one")
        expect(option.name in documented, f"the option {option.name} is not among the Args of the docstring")
    return ", ".join(option.name for option in options) or "no options"
