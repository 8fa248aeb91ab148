"""Transformation families by name, and sums of them."""

from collections.abc import Mapping
from typing import Any

from avtcli import registry
from avtcli.contracts import TransformFamily
from avtcli.errors import AvtError, nearest
from avtcli.geometry.sum_family import SumFamily


def plugin_names(spec: str) -> list[str]:
    """List the plugins that a family's name stands for: one, or the parts of a sum `a+b`."""
    return [registry.split_name(part)[0] for part in spec.split("+")]


def build_family(name: str, options: Mapping[str, Any]) -> TransformFamily:
    """Build a family, or a sum of several, whose options are tables by the names of its parts.

    Raises:
        AvtError: for an unknown name or option.
    """
    if "+" not in name:
        family: TransformFamily = registry.build("transform", name, options)
        return family
    names = plugin_names(name)
    for key, value in options.items():
        if key not in names or not isinstance(value, dict):
            expected = ", ".join(f"-o transform.{part}.KEY=VALUE" for part in names)
            raise AvtError(
                f"The sum '{name}' takes its parts' options, found 'transform.{key}'. {nearest(key, names)}Write {expected}."
            )
    parts = zip(names, name.split("+"), strict=True)
    return SumFamily([(part, registry.build("transform", spec, options.get(part, {}))) for part, spec in parts])
