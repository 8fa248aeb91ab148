"""Run the conformance checks on a plugin: its import, its documentation, and those of its contract."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from avtcli import registry
from avtcli.contracts import Objective, TransformFamily
from avtcli.errors import AvtError, nearest
from avtcli.plugin_kit import backbone_checks, dataset_checks, objective_checks, output_checks, transform_checks
from avtcli.plugin_kit.checking import Check, Trial, expect, failed_check, run_check, run_checks
from avtcli.plugin_kit.objective_checks import ObjectiveSubject
from avtcli.plugin_options import option_names
from avtcli.registry import PluginInfo

IMPORT_SECONDS: Final = 60.0
"""The longest that a plugin's import may take, torch's included."""
HEAVY: Final = ("timm", "torchvision", "transformers", "scipy", "pandas", "matplotlib")
"""Modules that are reported when an import pulls them in."""
BUILT_IN: Final = "avtcli"
"""The distribution whose families an objective is checked with, in addition to those of its own."""

_IMPORT = """
import contextlib, importlib, io, json, sys, time
import avtcli.contracts
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
        registry.load(info)  # an import that fails is an error, not a failed check
    yield run_check(it_imports_in_time, fresh)
    if fresh.seconds is None:
        return
    yield run_check(importing_it_prints_nothing, fresh)
    yield from run_checks((it_has_a_help_text, every_option_is_typed_and_documented), info)
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
    built: Objective = registry.build("objective", spec, {})
    families: dict[str, TransformFamily] = {}
    for other in registry.listing():
        if other.kind == "transform" and other.distribution in (BUILT_IN, info.distribution):
            family = registry.build("transform", other.name, {})
            try:
                built.outputs(family)
            except AvtError:
                continue
            families[other.name] = family
    expect(bool(families), f"it refuses every family of {BUILT_IN} and of its own distribution")
    return objective_checks.CHECKS, ObjectiveSubject(built, families)


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
    """The import of a plugin's module in a process of its own.

    Attributes:
        module: its name.
        seconds: its duration after the contracts; none where it was stopped after IMPORT_SECONDS.
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
    """Import a plugin's module in a process of its own, for no longer than IMPORT_SECONDS."""
    module = info.entry_point.module
    command = [sys.executable, "-c", _IMPORT, module]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        ended = subprocess.run(command, capture_output=True, timeout=IMPORT_SECONDS, env=variables, check=False)
    except subprocess.TimeoutExpired:
        return FreshImport(module)
    if ended.returncode != 0 or not ended.stdout:
        return FreshImport(module, seconds=0.0, failed=True)
    found = json.loads(ended.stdout.splitlines()[-1])
    pulled = tuple(name for name in HEAVY if name in found["modules"])
    return FreshImport(module, seconds=found["seconds"], printed=found["printed"], pulled=pulled)


def it_imports_in_time(fresh: FreshImport) -> str:
    expect(
        fresh.seconds is not None, f"importing {fresh.module} takes more than {IMPORT_SECONDS:g} s: import heavy modules late"
    )
    expect(not fresh.failed, f"{fresh.module} imports here and fails in a fresh process: does it need another module's import?")
    return f"{fresh.seconds:.2f} s" + (f", pulls in {', '.join(fresh.pulled)}" if fresh.pulled else "")


def importing_it_prints_nothing(fresh: FreshImport) -> str:
    expect(not fresh.printed, f"importing {fresh.module} prints {fresh.printed[:80]!r}")
    return ""


def it_has_a_help_text(info: PluginInfo) -> str:
    doc = inspect.getdoc(registry.load(info))
    expect(bool(doc), f"{info.value} has no docstring: its first line is the plugin's help")
    return str(doc).splitlines()[0]


def every_option_is_typed_and_documented(info: PluginInfo) -> str:
    function = registry.load(info)
    options, parameters = option_names(info.kind, function, who=str(info)), inspect.signature(function).parameters
    arguments = (inspect.getdoc(function) or "").partition("\nArgs:")[2]
    documented = set(re.findall(r"^\s+(\w+)(?: \([^)]*\))?:", arguments, re.MULTILINE))
    for name in options:
        typed = parameters[name].annotation is not inspect.Parameter.empty
        expect(typed, f"the option {name} has no type in the signature, so that text cannot be converted to it")
        expect(name in documented, f"the option {name} is not among the Args of the docstring")
    return ", ".join(options) or "no options"
