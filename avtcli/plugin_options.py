"""Options of a plugin: what its signature states, read from text, checked and completed."""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

from avtcli.errors import AvtError, nearest, shown
from avtcli.input_files import parse_toml

GIVEN: Final[Mapping[str, tuple[str, ...]]] = {
    "backbone": ("in_channels", "image_size"),
    "dataset": ("data_dir", "notify"),
    "objective": ("vector_dim", "family"),
}
"""Parameters that the caller of `registry.build` fills in, by kind; they are no options. A plugin takes those it names."""


SUMMED: Final[Mapping[str, bool]] = {"transform": False, "objective": True}
"""Kinds whose plugins add up, as `a+b`; whether each part has a weight, which is an option of the part."""


def option_names(kind: str, function: Callable[..., Any], *, who: str) -> list[str]:
    """Return the options of a plugin's function: its keyword-only parameters but for those of `GIVEN`.

    Raises:
        AvtError: if it hides its options behind *args or **kwargs.
    """
    parameters = inspect.signature(function).parameters
    for p in parameters.values():
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            raise AvtError(f"{who} takes {p}: a plugin names each of its options.")
    return [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and name not in GIVEN.get(kind, ())]


def option_helps(doc: str) -> dict[str, str]:
    """Return the help of each parameter: the entries of a docstring's section Args, each as one line."""
    section = dedent(doc.partition("\nArgs:\n")[2].partition("\n\n")[0])
    entries = re.findall(r"^(\w+)(?: \([^)]*\))?:((?:.*\n?)(?:[ \t]+.*\n?)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def parse_value(text: str) -> Any:
    """Read an option's text: a list or table as TOML, anything else as text, which the plugin's annotation types later."""
    if text[:1] not in ("[", "{"):
        return text
    return parse_toml(f"value = {text}", f"{shown(text)} starts like a list or table and")["value"]


def parts_of(value: Any) -> tuple[Any, ...]:
    """Read `A,B`, several values, or one; none give nothing."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return () if value is None else tuple(value) if isinstance(value, Iterable) else (value,)


def sum_parts(kind: str, spec: str) -> list[str]:
    """Return the specs of a sum's parts, or the spec alone.

    Raises:
        AvtError: if two parts have the same name.
    """
    parts = spec.split("+") if kind in SUMMED else [spec]
    names = [part.partition(":")[0] for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise AvtError(f"The sum '{spec}' has '{name}' twice: their options could not be distinguished.")
    return parts


def split_sum(kind: str, spec: str, values: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Split a sum `a+b`, whose options are tables by the names of its parts, into (spec, options) of each part."""
    parts = sum_parts(kind, spec)
    if len(parts) == 1:
        return [(spec, values)]
    names = [part.partition(":")[0] for part in parts]
    for key, value in values.items():
        if key not in names or not isinstance(value, Mapping):
            hint = nearest(key, names) + "Write " + ", ".join(f"-o {kind}.{name}.KEY=VALUE" for name in names)
            raise AvtError(f"The sum '{spec}' takes its parts' options, found '{kind}.{key}'. {hint}.")
    return [(part, values.get(name, {})) for name, part in zip(names, parts, strict=True)]


def bind_options(
    function: Callable[..., Any],
    variant: str | None,
    values: Mapping[str, Any],
    *,
    kind: str,
    name: str,
    who: str,
    weighted: bool = False,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Check a plugin's variant and options against its signature, and complete them with its defaults.

    Kind, name and `who`, which states the distribution too, are for messages. Texts are converted to the annotated types; what
    is annotated as `Path` becomes absolute. A part of a weighted sum has the option `weight` too, above 0.

    Returns:
        Positional arguments (the variant, or nothing), and every option by name in its annotated type.

    Raises:
        AvtError: for an unknown, missing or ill-typed option, or a variant that is missing or not taken.
    """
    from pydantic import ConfigDict, PositiveFloat, ValidationError, validate_call

    known = option_names(kind, function, who=who)
    if weighted and "weight" in known:
        raise AvtError(f"{who} has an option 'weight', which is that of a part in a sum too. Use it alone.")
    weight = inspect.Parameter("weight", inspect.Parameter.KEYWORD_ONLY, default=1.0, annotation=PositiveFloat)
    added = [weight] if weighted else []
    known += [p.name for p in added]
    for key in values:
        if key not in known:
            taken = ", ".join(sorted(known)) or "none"
            raise AvtError(f"The {kind} '{name}' has no option '{key}'. {nearest(key, known)}Its options: {taken}.")
    parameters = inspect.signature(function).parameters
    if variant is not None and not any(p.kind is p.POSITIONAL_ONLY for p in parameters.values()):
        raise AvtError(f"The {kind} '{name}' takes nothing after a colon, found '{variant}'. Write `{name}` alone.")

    @functools.wraps(function)  # pydantic reads the annotations of `function`
    def collect(*positional: Any, **options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(map(_absolute, positional)), {key: _absolute(value) for key, value in options.items()}

    kept = [p for key, p in parameters.items() if key in known or p.kind is not p.KEYWORD_ONLY]
    collect.__signature__ = inspect.Signature([*kept, *added])  # type: ignore[attr-defined]
    collect.__annotations__ = inspect.get_annotations(function) | {p.name: p.annotation for p in added}
    config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False, validate_default=True)
    try:
        return validate_call(config=config)(collect)(*([] if variant is None else [variant]), **values)
    except NameError as error:
        hint = "Import what its signature names at runtime, not under TYPE_CHECKING"
        raise AvtError(f"{who} has an annotation that does not resolve ({error}). {hint}.") from error
    except ValidationError as error:
        raise AvtError(f"The {kind} '{name}' does not take these options: {_problems(kind, name, error)}.") from None


def _problems(kind: str, name: str, error: Any) -> str:
    problems = []
    for detail in error.errors():
        where = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "missing_positional_only_argument":
            problems.append(f"it needs something after a colon, as in `{name}:VARIANT`")
        elif detail["type"].startswith("missing"):
            problems.append(f"option '{where}' is needed: give `-o {kind}.{where}=VALUE`")
        else:
            message = detail["msg"].removeprefix("Input ").partition(", unable to parse")[0]
            problems.append(f"option '{where}' {message}, found {shown(detail['input'])}")
    return "; ".join(problems)


def absolute_path(path: str | Path) -> Path:
    """Make a path absolute, with `~` as the home folder; links stay unless the path goes up from one.

    Raises:
        AvtError: if `~NAME` names no user.
    """
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:
        raise AvtError(f"The path {path} starts with the home folder of an unknown user. Write it in full.") from error
    return path.resolve() if ".." in path.parts else path.absolute()


def _absolute(value: Any) -> Any:
    return absolute_path(value) if isinstance(value, Path) else value


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as values that JSON and TOML hold: lists for tuples, text for paths; None is left out."""
    from pydantic_core import to_jsonable_python

    return {key: to_jsonable_python(value) for key, value in options.items() if value is not None}
