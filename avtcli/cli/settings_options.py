"""Command-line options generated from the fields of the settings."""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from avtcli.cli.completion import complete_setting
from avtcli.cli.options import number_or_auto, option
from avtcli.config.components import Flag, Panel, Plugin, flags_of, read_setting, value_type
from avtcli.storage.run_folders import find_run

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

Command = Callable[..., None]


def settings_options(model: "type[BaseModel]") -> Callable[[Command], Command]:
    """Give a command one option for each field of the model that has a `Flag`, in place of its `**settings`.

    The command receives the values that were given by field name, the name of a plugin as `{"name": NAME}`.
    """
    flags, fields = flags_of(model), model.model_fields
    plugins_first = sorted(flags, key=lambda name: value_type(fields[name]) is not Plugin)
    generated = [_parameter(name, fields[name], flags[name]) for name in plugins_first]

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        written = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            if values.get("init_from") is not None:  # by name too, as a run is
                values["init_from"] = find_run(values["init_from"])
            given = {name: read_setting(values.pop(name), fields[name]) for name in flags}
            command(**values, **{name: value for name, value in given.items() if value is not None})

        parameters = sorted([*generated, *written], key=_panel_rank)
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__dict__["__signature__"] = signature.replace(parameters=parameters)
        return run

    return decorate


def _parameter(name: str, field: "FieldInfo", flag: Flag) -> inspect.Parameter:
    kind, declared = value_type(field), flag.option(name)
    text = f"{field.description}{_default_text(field.default)}"
    more: dict[str, Any] = _bounds(field) if kind in (int, float) and not flag.auto else {}
    if flag.auto:
        more["parser"] = _number_or_kept_auto
    more["autocompletion"] = complete_setting(name, plugin=kind is Plugin)
    if kind is bool:
        declared = f"{declared}/--no-{declared.removeprefix('--')}"
    taken: Any = list[str] if flag.repeat else str if kind is Plugin or get_origin(kind) is tuple else kind
    annotation = Annotated[taken | None, option(text, flag.metavar, flag=declared, panel=flag.panel, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _number_or_kept_auto(text: str) -> int | str:
    number = number_or_auto(text)
    return "auto" if number is None else number


def _bounds(field: "FieldInfo") -> dict[str, float]:
    """Inclusive bounds; an exclusive bound of a float is left to the settings' own validation."""
    marks = {key: getattr(mark, key) for mark in field.metadata for key in ("ge", "gt", "le") if hasattr(mark, key)}
    if "gt" in marks and value_type(field) is int:
        marks["ge"] = marks["gt"] + 1
    return {name: marks[key] for name, key in (("min", "ge"), ("max", "le")) if key in marks}


def _default_text(default: Any) -> str:
    if default in (None, ()):
        return ""  # the description states what an empty default means
    if isinstance(default, bool):
        return f" Default: {'yes' if default else 'no'}."
    return f" Default: {default.name if isinstance(default, Plugin) else default}."


def _panel_rank(parameter: inspect.Parameter) -> int:
    """Sort options by the panels of the help; arguments and options without a panel come first."""
    panel, order = parameter.annotation.__metadata__[-1].rich_help_panel, get_args(Panel)
    return order.index(panel) if panel in order else -1
