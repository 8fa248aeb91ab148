"""Transformation families by name, and sums of them."""

from collections.abc import Mapping
from typing import Any

from avtcli import registry
from avtcli.contracts import TransformFamily
from avtcli.geometry.sum_family import SumFamily
from avtcli.plugin_options import split_sum


def build_family(name: str, options: Mapping[str, Any]) -> TransformFamily:
    """Build a family, or a sum of several, whose options are tables by the names of its parts.

    Raises:
        AvtError: for an unknown name or option.
    """
    built = [(part, registry.build("transform", part, own)) for part, own in split_sum("transform", name, options)]
    family: TransformFamily = built[0][1]
    return family if len(built) == 1 else SumFamily([(registry.split_name(part)[0], made) for part, made in built])
