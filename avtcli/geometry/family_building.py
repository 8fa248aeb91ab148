"""Families of transformations by name, and sums of them."""

from avtcli import registry
from avtcli.config.components import Plugin
from avtcli.contracts import TransformFamily
from avtcli.errors import AvtError, nearest
from avtcli.geometry.sum_family import SumFamily


def plugin_names(spec: str) -> list[str]:
    """The plugins that a family's name stands for: one, or those of the sum `a+b`."""
    return [registry.split_name(part)[0] for part in spec.split("+")]


def build_family(plugin: Plugin) -> TransformFamily:
    """Make a family, or the sum of several, whose options are tables by the parts' names.

    Raises:
        AvtError: for an unknown name or option.
    """
    if "+" not in plugin.name:
        family: TransformFamily = registry.build("transform", plugin.name, plugin.options)
        return family
    names = plugin_names(plugin.name)
    for key, value in plugin.options.items():
        if key not in names or not isinstance(value, dict):
            ways = ", ".join(f"-o transform.{name}.KEY=VALUE" for name in names)
            raise AvtError(
                f"The sum '{plugin.name}' takes its parts' options, found 'transform.{key}'. {nearest(key, names)}Write {ways}."
            )
    parts = plugin.name.split("+")
    built = [registry.build("transform", part, plugin.options.get(name, {})) for name, part in zip(names, parts, strict=True)]
    return SumFamily(list(zip(names, built, strict=True)))
