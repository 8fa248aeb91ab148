"""Recipes by name: one TOML file per published experiment, every value with its source, and our defaults."""

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from avtcli.errors import AvtError, nearest, shown
from avtcli.input_files import parse_toml, read_text

PUBLISHED = {
    ("cifar10", "nin"): "cifar10-nin",
    ("cifar10", "nin", "aet", "projective"): "cifar10-nin-aet",
    ("cifar10", "nin", "aet", "affine"): "cifar10-nin-aet-affine",
    ("imagenet", "alexnet"): "imagenet-alexnet",
    ("imagenet", "alexnet", "aet", "projective"): "imagenet-alexnet-aet",
}
"""Published pretraining recipes by data set and backbone, and for AET also by objective and family."""


def names() -> list[str]:
    """Return the built-in recipes, sorted."""
    files = (path.name for path in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def text(name: str) -> str:
    """Return the text of a recipe by name, or of a TOML file of the same form, such as a run's config.toml."""
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not os.path.exists(path):  # also for a name that no file has
            raise AvtError(f"There is no recipe file {path}. Write one with `avt recipes copy default {path.name}`.")
        return read_text(path)
    if name not in names():
        raise AvtError(f"No recipe is called '{name}'. {nearest(name, names())}See `avt recipes list`.")
    return (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8")


def parse(name: str, content: str) -> dict[str, Any]:
    """Read the text of a recipe; an `AvtError` gives the line that is no TOML, or refuses what [about] holds."""
    table = parse_toml(content, name)
    about = table.get("about", {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise AvtError(f'{name} needs a table [about] of texts, such as `kind = "pretrain"`, found {shown(about)}.')
    return table


def load(name: str, *, kind: str) -> dict[str, Any]:
    """Read a recipe, see `text`, for the command pretrain or probe; an `AvtError` refuses one for another command."""
    content = parse(name, text(name))
    stated = content.pop("about", {}).get("kind", kind)
    if stated != kind:
        raise AvtError(f"The recipe '{name}' is for `avt {stated}`, not for `avt {kind}`.")
    return content


def choose(settings: Mapping[str, Any]) -> str:
    """Return the published recipe of a data set and a backbone, else the default.

    A data set alone has the backbone that was published for it; a backbone alone has the default data set, so the default.
    """
    given = {kind: (settings.get(kind) or {}).get("name") for kind in ("dataset", "backbone", "objective", "transform")}
    names = {kind: name.partition(":")[0] if isinstance(name, str) else "" for kind, name in given.items()}
    published = next((backbone for dataset, backbone, *_ in PUBLISHED if dataset == names["dataset"]), "")
    pair = (names["dataset"], names["backbone"] or published)
    whole = (*pair, names["objective"], names["transform"] or "projective")
    return PUBLISHED.get(whole) or PUBLISHED.get(pair, "default")
