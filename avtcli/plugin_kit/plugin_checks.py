"""Run the conformance checks on a plugin: its import, its documentation, and those of its contract."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from avtcli import registry
from avtcli.errors import AvtError, nearest
from avtcli.inspection.plugin_source import read_plugin
from avtcli.plugin_kit import backbone_checks, dataset_checks, objective_checks, output_checks, transform_checks
from avtcli.plugin_kit.checking import Check, Trial, expect, failed_check, run_check, run_checks
from avtcli.plugin_options import option_helps
from avtcli.registry import PluginInfo

IMPORT_SECONDS: Final = 20.0  # on top of the import of the contracts, which is torch's
HEAVY: Final = ("timm", "torchvision", "transformers", "scipy", "pandas", "matplotlib")  # reported when they are imported

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


def find_plugin(spec: str, kind: str | None = None) -> tuple[PluginInfo, str]:
    """Look up a plugin by its name alone, or by its name and kind; return it and the full spec, as for `--backbone resnet18`.

    Raises:
        AvtError: if there is none, several kinds have the name, or several distributions do.
    """
    name = registry.split_name(spec)[0]
    kinds = [kind] if kind else [kind for kind in registry.KINDS if name in registry.names(kind)]
    if not kinds and registry.full_name("backbone", spec) != spec:
        kinds = ["backbone"]
    if len(kinds) > 1 and spec != name:  # only some plugins take something after the colon
        kinds = [kind for kind in kinds if read_plugin(kind, name).takes_variant] or kinds
    if len(kinds) > 1:
        flags = " or ".join(f"--kind {kind}" for kind in kinds)
        raise AvtError(f"Several kinds have a plugin called '{name}': {', '.join(kinds)}. Give {flags}.")
    if not kinds:
        hint = nearest(name, sorted({info.name for info in registry.listing()}))
        if os.path.isfile(os.path.join(name, "pyproject.toml")):
            hint = f"The package in the folder of this name is not installed yet: `pip install -e {name}`. "
        raise AvtError(f"No plugin is called '{name}'. {hint}`avt plugins list` shows what is installed.")
    full = registry.full_name(kinds[0], spec)
    return registry.info(kinds[0], registry.split_name(full)[0]), full


def run_all(spec: str, *, kind: str | None) -> Iterator[Check]:
    """Yield the result of each check; see `avtcli.plugin_kit.check_plugin`."""
    info, spec = find_plugin(spec, kind)
    fresh = import_afresh(info)
    yield run_check(it_imports_in_time, fresh)
    if fresh.seconds is None:
        return
    registry.load(info)  # raises where the plugin cannot be imported here either
    yield run_check(importing_it_prints_nothing, fresh)
    yield from run_checks((it_has_a_help_text, every_option_is_typed_and_documented), info)
    try:
        checks, subject = _TRIALS[info.kind](spec)
    except AvtError:
        raise
    except Exception as error:  # a plugin's code can fail in any way
        yield failed_check("it can be built", error)
    else:
        yield Check("it can be built")
        yield from run_checks(checks, subject)


_TRIALS: Final[dict[str, Callable[[str], Trial]]] = {
    "backbone": backbone_checks.trial,
    "transform": transform_checks.trial,
    "dataset": dataset_checks.trial,
    "objective": objective_checks.trial,
    "exporter": output_checks.exporter_trial,
    "tracker": output_checks.tracker_trial,
}


@dataclass(frozen=True)
class FreshImport:
    """The import of a plugin's module in a fresh process: its output, and the modules that it imported."""

    module: str
    seconds: float | None = None  # none where it was stopped after IMPORT_SECONDS
    failed: bool = False
    printed: str = ""
    modules: Sequence[str] = ()


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
    return FreshImport(module, **json.loads(output.splitlines()[-1]))


def it_imports_in_time(fresh: FreshImport) -> str:
    """Within IMPORT_SECONDS after the contracts, in a fresh process."""
    seconds, module = fresh.seconds, fresh.module
    expect(seconds is not None, f"importing {module} takes more than {IMPORT_SECONDS:g} s: import heavy modules late")
    expect(not fresh.failed, f"{module} imports here and fails in a fresh process: does it need another module's import?")
    pulled = [name for name in HEAVY if name in fresh.modules]
    return f"{seconds:.2f} s" + (f", pulls in {', '.join(pulled)}" if pulled else "")


def importing_it_prints_nothing(fresh: FreshImport) -> None:
    """Nothing happens at import."""
    expect(not fresh.printed, f"importing {fresh.module} prints {fresh.printed[:80]!r}")


def it_has_a_help_text(plugin: PluginInfo) -> str:
    """The first line of its docstring."""
    doc = inspect.getdoc(registry.load(plugin))
    expect(bool(doc), f"{plugin.value} has no docstring: its first line is the plugin's help")
    return str(doc).splitlines()[0]


def every_option_is_typed_and_documented(plugin: PluginInfo) -> str:
    """Each has a type in the signature, and a line among the docstring's Args."""
    function, options = registry.load(plugin), registry.options(plugin)
    parameters, documented = inspect.signature(function).parameters, option_helps(inspect.getdoc(function) or "")
    for name in options:
        typed = parameters[name].annotation is not inspect.Parameter.empty
        expect(typed, f"the option {name} has no type in the signature, so that text cannot be converted to it")
        expect(name in documented, f"the option {name} is not among the Args of the docstring")
    return ", ".join(options) or "no options"
