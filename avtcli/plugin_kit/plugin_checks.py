"""Run the conformance checks on a plugin: its import, its documentation, and those of its contract."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from avtcli import registry
from avtcli.contracts import Objective, TransformFamily
from avtcli.errors import AvtError, nearest
from avtcli.plugin_kit import backbone_checks, dataset_checks, objective_checks, output_checks, transform_checks
from avtcli.plugin_kit.checking import Check, Trial, expect, failed_check, run_check, run_checks
from avtcli.plugin_kit.objective_checks import ObjectiveUnderTest
from avtcli.registry import PluginInfo

IMPORT_SECONDS: Final = 20.0
"""The longest that a plugin's import may take, on top of the contracts' own, which is torch's."""
HEAVY: Final = ("timm", "torchvision", "transformers", "scipy", "pandas", "matplotlib")
"""Modules that are reported when an import pulls them in."""
BUILT_IN: Final = "avtcli"
"""The distribution whose families an objective is checked with, in addition to its own families."""

_IMPORT = """
import contextlib, importlib, io, json, sys, time
import avtcli.contracts
print("ready", flush=True)
printed, before, start = io.StringIO(), set(sys.modules), time.monotonic()
with contextlib.redirect_stdout(printed):
    importlib.import_module(sys.argv[1])
seconds = time.monotonic() - start
print(json.dumps({"seconds": seconds, "printed": printed.getvalue(), "modules": sorted(set(sys.modules) - before)}))
"""


def find_plugin(spec: str, kind: str | None = None) -> PluginInfo:
    """Look up a plugin by its name alone, or by its name and kind.

    Raises:
        AvtError: if there is none, several kinds have the name, or several distributions do.
    """
    name, _ = registry.split_name(spec)
    if kind is not None:
        return registry.info(kind, name)
    kinds = [kind for kind in registry.KINDS if name in registry.names(kind)]
    if len(kinds) > 1:
        flags = " or ".join(f"--kind {kind}" for kind in kinds)
        raise AvtError(f"Several kinds have a plugin called '{name}': {', '.join(kinds)}. Give {flags}.")
    if not kinds:
        full = registry.full_name("backbone", spec)
        hint = nearest(name, sorted({info.name for info in registry.listing()})) if full == spec else f"Did you mean '{full}'? "
        raise AvtError(f"No plugin is called '{name}'. {hint}`avt plugins list` shows what is installed.")
    return registry.info(kinds[0], name)


def run_all(spec: str, *, kind: str | None = None) -> list[Check]:
    """See `avtcli.plugin_kit.check_plugin`."""
    return list(_checks(find_plugin(spec, kind), spec))


def _checks(info: PluginInfo, spec: str) -> Iterator[Check]:
    fresh = import_afresh(info)
    if fresh.seconds is not None:
        plugin = LoadedPlugin(info, registry.load(info))
    yield run_check(it_imports_in_time, fresh)
    if fresh.seconds is None:
        return
    yield run_check(importing_it_prints_nothing, fresh)
    yield from run_checks((it_has_a_help_text, every_option_is_typed_and_documented), plugin)
    try:
        checks, subject = _TRIALS[info.kind](spec, info)
    except AvtError:
        raise
    except Exception as error:  # a plugin's code can fail in any way
        yield failed_check("it can be built", error)
        return
    yield Check("it can be built")
    yield from run_checks(checks, subject)


def _objective(spec: str, info: PluginInfo) -> Trial:
    def make(family: TransformFamily, vector_dim: int) -> Objective:
        made: Objective = registry.build("objective", spec, {}, vector_dim=vector_dim, family=family)
        return made

    families: dict[str, TransformFamily] = {}
    for other in registry.listing():
        if other.kind == "transform" and other.distribution in (BUILT_IN, info.distribution):
            family = registry.build("transform", other.name, {})
            try:
                make(family, 8)
            except AvtError:
                continue
            families[other.name] = family
    expect(bool(families), f"it refuses every family of {BUILT_IN} and of the plugin's distribution")
    return objective_checks.CHECKS, ObjectiveUnderTest(make, families)


_TRIALS: Final[dict[str, Callable[[str, PluginInfo], Trial]]] = {
    "backbone": lambda spec, info: backbone_checks.trial(spec),
    "transform": lambda spec, info: (transform_checks.CHECKS, registry.build("transform", spec, {})),
    "dataset": lambda spec, info: dataset_checks.trial(spec),
    "objective": _objective,
    "exporter": lambda spec, info: output_checks.exporter_trial(spec),
    "tracker": lambda spec, info: output_checks.tracker_trial(spec),
}


@dataclass(frozen=True)
class FreshImport:
    """The import of a plugin's module in a fresh process.

    Attributes:
        module: its name.
        seconds: its duration; none where it was stopped after IMPORT_SECONDS.
        failed: whether it ended in an error.
        printed: its output.
        pulled: modules of `HEAVY` that it imported.
    """

    module: str
    seconds: float | None = None
    failed: bool = False
    printed: str = ""
    pulled: tuple[str, ...] = ()


def import_afresh(info: PluginInfo) -> FreshImport:
    """Import a plugin's module in a fresh process, for no longer than IMPORT_SECONDS."""
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
            output = child.communicate(timeout=IMPORT_SECONDS)[0]
        except subprocess.TimeoutExpired:
            child.kill()
            return FreshImport(module)
    if child.returncode != 0 or not output:
        return FreshImport(module, seconds=0.0, failed=True)
    found = json.loads(output.splitlines()[-1])
    pulled = tuple(name for name in HEAVY if name in found["modules"])
    return FreshImport(module, seconds=found["seconds"], printed=found["printed"], pulled=pulled)


def it_imports_in_time(fresh: FreshImport) -> str:
    """Within IMPORT_SECONDS after the contracts, in a fresh process."""
    expect(
        fresh.seconds is not None, f"importing {fresh.module} takes more than {IMPORT_SECONDS:g} s: import heavy modules late"
    )
    expect(not fresh.failed, f"{fresh.module} imports here and fails in a fresh process: does it need another module's import?")
    return f"{fresh.seconds:.2f} s" + (f", pulls in {', '.join(fresh.pulled)}" if fresh.pulled else "")


def importing_it_prints_nothing(fresh: FreshImport) -> str:
    """Nothing happens at import."""
    expect(not fresh.printed, f"importing {fresh.module} prints {fresh.printed[:80]!r}")
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


def it_has_a_help_text(plugin: LoadedPlugin) -> str:
    """The first line of its docstring."""
    expect(bool(plugin.doc), f"{plugin.info.value} has no docstring: its first line is the plugin's help")
    return plugin.doc.splitlines()[0]


def every_option_is_typed_and_documented(plugin: LoadedPlugin) -> str:
    """Each has a type in the signature, and a line among the docstring's Args."""
    options = registry.options(plugin.info)
    parameters = inspect.signature(plugin.function).parameters
    documented = set(re.findall(r"^\s+(\w+)(?: \([^)]*\))?:", plugin.doc.partition("\nArgs:")[2], re.MULTILINE))
    for option in options:
        typed = parameters[option.name].annotation is not inspect.Parameter.empty
        expect(typed, f"the option {option.name} has no type in the signature, so that text cannot be converted to it")
        expect(option.name in documented, f"the option {option.name} is not among the Args of the docstring")
    return ", ".join(option.name for option in options) or "no options"
