"""What the functions share: progress, paths, and arguments as settings."""

import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avtcli import events
from avtcli.errors import AvtError, shown
from avtcli.plugin_options import absolute_path

if TYPE_CHECKING:
    from pydantic import BaseModel

Device = Literal["auto", "cpu", "cuda", "mps"]
Options = Mapping[str, Any]
"""`KIND.KEY` to value, as `-o` of the command line: `{"backbone.width": 0.25}`."""

_ONE_AT_A_TIME = threading.RLock()  # torch's random state, which training seeds at each step, is one for all threads


@contextlib.contextmanager
def calling(progress: bool) -> Iterator[events.OnEvent]:
    """Make other threads wait until this call ends, and yield a receiver of events, which shows them on stderr if asked to."""
    from avtcli.cli.console import rendering

    with _ONE_AT_A_TIME, rendering() if progress else contextlib.nullcontext(events.ignore) as on_event:
        yield on_event


def path_of(given: str | Path | None) -> Path | None:
    """Return a path as given to a function: absolute, with `~` as the home folder; none stays none."""
    if not isinstance(given, str | Path | None) or "\0" in str(given):
        raise AvtError(f"A path is a text without NUL or a Path, found {shown(given)}.")
    return None if given is None else absolute_path(given)


def check_texts(**given: object) -> None:
    """Refuse arguments that are neither text nor None, by name."""
    for name, value in given.items():
        if not isinstance(value, str | None):
            raise AvtError(f"`{name}` takes a text, found {shown(value)}.")


def run_of(given: str | Path | None) -> Path | None:
    """Return the path of a run as `path_of` does, also by its name under ./runs; `last`, the newest one there, stays."""
    from avtcli.storage.run_folders import LAST, find_run

    path = path_of(given)
    return path if given is None else Path(LAST) if str(given) == LAST else path_of(find_run(given))


def weights_of(given: str | Path | None) -> Path | None:
    """Return the path of a run by its folder or name, of a checkpoint or a file; none for none."""
    from avtcli.storage.run_folders import find_run

    return None if given is None else path_of(find_run(given))


def with_paths(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function's arguments with `run`, `init_from`, `out` and `data_dir` as the command line has them."""
    data_dir = path_of(arguments["data_dir"])
    paths = {"run": run_of(arguments["run"]), "init_from": weights_of(arguments["init_from"]), "out": path_of(arguments["out"])}
    return {**arguments, **paths, "data_dir": None if data_dir is None else str(data_dir)}


def read_options(options: Options | None, kinds: Collection[str]) -> dict[str, dict[str, Any]]:
    """Sort options by kind, see `options_by_kind`."""
    from avtcli.config.resolution import options_by_kind

    if not isinstance(options, Mapping | None):
        raise AvtError(f"`options` takes a dict, as {{'backbone.width': 0.25}}, found {shown(options)}.")
    return options_by_kind([(str(key), value) for key, value in (options or {}).items()], kinds=kinds)


def settings_of(model: "type[BaseModel]", arguments: Mapping[str, Any], *, options: Options | None) -> dict[str, Any]:
    """Return the settings that were given, by field: arguments, which have the names of the options, and options over them."""
    from avtcli.config.components import component_kinds, flags_of, read_setting
    from avtcli.config.resolution import merge

    arguments = {**arguments, "init_from": weights_of(arguments["init_from"])}
    names = {field: (flag.name or field).replace("-", "_") for field, flag in flags_of(model).items()}
    settings = {field: read_setting(arguments[name], model.model_fields[field]) for field, name in names.items()}
    given = {field: setting for field, setting in settings.items() if setting is not None}
    return merge({**given, "lr": arguments["lr"]}, read_options(options, component_kinds(model)))
