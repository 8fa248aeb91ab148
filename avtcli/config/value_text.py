"""Settings and facts in the forms that people read."""

from collections.abc import Mapping
from typing import Any


def flat_settings(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted name, as `backbone.width`."""
    out: dict[str, Any] = {}
    for key, value in table.items():
        out |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def options_of(described: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options among what a protocol states of a plugin, without its name and description."""
    return {name: value for name, value in (described or {}).items() if name not in ("name", "description")}


def counted(count: float, noun: str) -> str:
    """Write a number of things, as in `1 epoch` and `1.5 epochs`."""
    return f"{value_text(count)} {noun}{'s' * (count != 1)}"


def value_text(value: Any) -> str:
    """Write a value, as in `2, 0.5` for a list and `name avt, scale 2` for a mapping; a hyphen for none."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {value_text(part)}".rstrip() for key, part in value.items())
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(part, (Mapping, list, tuple)) for part in value)
        return ("; " if nested else ", ").join(map(value_text, value))
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
