"""Settings, environment and command of a run."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avtcli.config.resolution import resolve
from avtcli.config.value_text import flat_settings
from avtcli.errors import AvtError
from avtcli.reporting.collected_run import CollectedRun
from avtcli.reporting.sections._blocks import Block, Command, Facts, Fold, Section, Table, short_text, side_by_side

PRIVATE = ("command", "host", "pid", "steps")
"""Entries of env.json that are shown elsewhere, or that nobody else needs."""
PLACES = ("recipe", "data_dir")
RESOLVED = ("precision", "compile", "capture", "channels_last", "optimizer.fused")
"""Settings that are chosen for the device where neither the recipe nor the command states them."""


def run_settings(runs: Sequence[CollectedRun]) -> Section:
    """What differs from the recipe; all settings, the environment and the command."""
    lead = "What it takes to do the run again: `config.toml` of its folder has all settings, `avt pretrain --recipe` takes it."
    return Section(110, "Settings", lead, side_by_side(runs, _settings))


def _settings(run: CollectedRun) -> list[Block]:
    settings, environment = run.summary.settings, run.environment
    command = environment.get("command")
    blocks: list[Block] = []
    if isinstance(command, list) and command:
        own = Path(str(command[0])).name in ("__main__.py", "avt")
        blocks.append(Command(shlex.join(["avt" if own else str(command[0]), *map(str, command[1:])])))
    recipe = _recipe_settings(settings.get("recipe"))
    if recipe is not None:
        words = {str(word).split("=")[0] for word in command or ()}
        chosen = {n for n in RESOLVED if recipe.get(n) in (None, "auto") and not words & {n, f"--{n}", f"--no-{n}"}}
        left_out = {*PLACES, *chosen}
        names = [name for name in {**recipe, **settings} if name not in left_out and settings.get(name) != recipe.get(name)]
        rows = [[name, *(short_text(own.get(name, "not set")) for own in (settings, recipe))] for name in names]
        header = ["setting", "this run", f"recipe {settings['recipe']}"]
        blocks.append(Table(header, rows, title="What differs from the recipe", figures=False))
    stated = {name: value for name, value in environment.items() if name not in PRIVATE and value is not None}
    folds = {"All settings": settings, "Environment": stated}
    return [*blocks, *(Fold(title, [Facts(facts)]) for title, facts in folds.items() if facts)]


def _recipe_settings(name: Any) -> dict[str, Any] | None:
    """The settings of a recipe with all defaults; none if it is not there any more."""
    try:
        return flat_settings(resolve({}, recipe=str(name)).model_dump(mode="json", exclude_none=True))
    except AvtError:
        return None
