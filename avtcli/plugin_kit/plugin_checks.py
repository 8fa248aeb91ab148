"""Checking a plugin: what it costs to import, what it documents, and whether it keeps its contract's checks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch

from avtcli import registry
from avtcli.contracts import Backbone, ImageData, Objective, Size, TransformFamily
from avtcli.data.datasets import data_folder
from avtcli.errors import AvtError, nearest
from avtcli.plugin_kit import backbone_checks as of_backbone
from avtcli.plugin_kit import dataset_checks as of_dataset
from avtcli.plugin_kit import objective_checks as of_objective
from avtcli.plugin_kit import transform_checks as of_transform
from avtcli.plugin_kit.backbone_checks import BackboneSubject
from avtcli.plugin_kit.checking import Check, expect, failed_check, run_check, run_checks
from avtcli.plugin_kit.dataset_checks import DatasetSubject
from avtcli.plugin_kit.objective_checks import ObjectiveUnderTest
from avtcli.plugin_kit.plugin_facts import (
    LoadedPlugin,
    every_option_is_typed_and_documented,
    import_afresh,
    importing_it_prints_nothing,
    it_imports_in_time,
    it_says_what_it_is,
)
from avtcli.registry import PluginInfo
from avtcli.seeding import seed_of

SIZES: Final = ((32, 32), (224, 224))
"""(height, width) of the images that a backbone is tried with: the first that it does not refuse."""
CHANNELS: Final = 3
OURS: Final = "avtcli"
"""The distribution whose families an objective is tried with, beside those of its own."""

Trial = tuple[Sequence[Callable[[Any], str]], Any]
"""The checks of a kind, and what they are tried on."""


def find_plugin(spec: str, kind: str | None = None) -> PluginInfo:
    """Look up a plugin by its name alone, or by its name and kind.

    Raises:
        AvtError: if there is none, several kinds have the name, or several distributions do.
    """
    name, _ = registry.split_name(spec)
    if kind is not None:
        return registry.info(kind, name)
    kinds = [kind for kind in registry.KINDS if name in registry.names(kind)]
    if len(kinds) > 1:
        ways = " or ".join(f"--kind {kind}" for kind in kinds)
        raise AvtError(f"Several kinds have a plugin called '{name}': {', '.join(kinds)}. Say which: {ways}.")
    if not kinds:
        full = registry.full_name("backbone", spec)
        hint = nearest(name, sorted({info.name for info in registry.listing()})) if full == spec else f"Did you mean '{full}'? "
        raise AvtError(f"No plugin is called '{name}'. {hint}`avt plugins list` shows what is installed.")
    return registry.info(kinds[0], name)


def check_plugin(spec: str, *, kind: str | None = None) -> list[Check]:
    """Try every check that a plugin makes.

    Args:
        spec: `NAME` or `NAME:VARIANT`; for a data set `NAME:PATH`.
        kind: backbone, transform, dataset or objective; left out, the only kind with that name.

    Returns:
        One check a check; those of what the plugin makes are left out where it makes nothing.

    Raises:
        AvtError: if there is no such plugin, or it cannot be imported, or it says that it cannot be built, as a data set does
            that is not on this machine.
    """
    return list(_checks(find_plugin(spec, kind), spec))


def _checks(info: PluginInfo, spec: str) -> Iterator[Check]:
    fresh = import_afresh(info)
    if fresh.seconds is not None:
        plugin = LoadedPlugin(info, registry.load(info))
    yield run_check(it_imports_in_time, fresh)
    if fresh.seconds is None:
        return
    yield run_check(importing_it_prints_nothing, fresh)
    yield from run_checks((it_says_what_it_is, every_option_is_typed_and_documented), plugin)
    try:
        checks, subject = _TRIALS[info.kind](info, spec)
    except AvtError:
        raise
    except Exception as error:  # a stranger's code can fail in any way
        yield failed_check("it can be built", error)
        return
    yield Check("it can be built")
    yield from run_checks(checks, subject)


def _backbone(info: PluginInfo, spec: str) -> Trial:
    def make(seed: int, channels: int, size: Size) -> Backbone:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(seed, "weights"))
            made: Backbone = registry.build("backbone", spec, {}, in_channels=channels, image_size=size)
            return made

    def first_taken() -> tuple[Backbone, Size]:
        for size in SIZES[:-1]:
            try:
                return make(0, CHANNELS, size), size
            except AvtError:
                continue
        return make(0, CHANNELS, SIZES[-1]), SIZES[-1]

    network, size = first_taken()
    return of_backbone.CHECKS, BackboneSubject(lambda seed, channels: make(seed, channels, size), network, size, CHANNELS)


def _transform(info: PluginInfo, spec: str) -> Trial:
    return of_transform.CHECKS, registry.build("transform", spec, {})


def _dataset(info: PluginInfo, spec: str) -> Trial:
    def open_it() -> ImageData:
        data: ImageData = registry.build("dataset", spec, {}, data_dir=data_folder(None))
        return data

    return of_dataset.CHECKS, DatasetSubject(open_it(), open_it)


def _objective(info: PluginInfo, spec: str) -> Trial:
    def make(family: TransformFamily, vector_dim: int) -> Objective:
        made: Objective = registry.build("objective", spec, {}, vector_dim=vector_dim, family=family)
        return made

    families: dict[str, TransformFamily] = {}
    for other in registry.listing():
        if other.kind == "transform" and other.distribution in (OURS, info.distribution):
            family = registry.build("transform", other.name, {})
            try:
                make(family, 8)
            except AvtError:
                continue
            families[other.name] = family
    expect(bool(families), f"it refuses every family of {OURS} and of its own distribution")
    return of_objective.CHECKS, ObjectiveUnderTest(make, families)


_TRIALS: Final[dict[str, Callable[[PluginInfo, str], Trial]]] = {
    "backbone": _backbone,
    "transform": _transform,
    "dataset": _dataset,
    "objective": _objective,
}
