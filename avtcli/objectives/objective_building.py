"""Objectives by name, and sums of them."""

from collections.abc import Mapping
from typing import Any

from avtcli import registry
from avtcli.contracts import Objective, TransformFamily
from avtcli.objectives.sum_objective import SumObjective
from avtcli.plugin_options import sum_parts


def build_objective(name: str, options: Mapping[str, Any], *, vector_dim: int, family: TransformFamily) -> Objective:
    """Build an objective, or a sum of several, whose options are tables by the names of its parts, with their weights.

    Raises:
        AvtError: for an unknown name or option, or parts that do not go together.
    """

    def build(part: str, own: Mapping[str, Any]) -> Objective:
        made: Objective = registry.build("objective", part, own, vector_dim=vector_dim, family=family)
        return made

    parts = sum_parts("objective", name)
    if len(parts) == 1:
        return build(name, options)
    tables = registry.resolve("objective", name, options)[1]
    weights = [table.pop("weight") for table in tables.values()]
    built = map(build, parts, tables.values())
    return SumObjective(list(zip(tables, built, weights, strict=True)))
