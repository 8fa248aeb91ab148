"""Options generated from the fields of the settings."""

from typing import Annotated, Any

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from avtcli.cli.app import load_command
from avtcli.cli.settings_options import settings_options
from avtcli.config.components import Flag, Frozen, Plugin, component_kinds, flags_of
from avtcli.config.pretrain_config import PretrainConfig


class Settings(Frozen):
    """One field of each sort."""

    count: Annotated[int, Flag("Data", metavar="N", on_resume=True)] = Field(default=3, gt=0)
    """Number of images."""
    rate: Annotated[float | None, Flag("Optimisation")] = Field(default=None, gt=0, le=1)
    """Learning rate."""
    workers: Annotated[int | None, Flag("Hardware", metavar="N|auto", auto=True)] = Field(default=None, ge=0)
    """Number of processes."""
    augmented: Annotated[bool, Flag("Data", name="augment")] = True
    """Augment the images."""
    layers: Annotated[tuple[str, ...], Flag(name="layer")] = ()
    """Layers to read."""
    trackers: Annotated[tuple[str, ...], Flag("Output", name="tracker", repeat=True)] = ()
    """Trackers."""
    backbone: Annotated[Plugin | None, Flag("Model", metavar="NAME")] = None
    """Network."""
    internal: int = 7
    """Not on the command line."""


@pytest.fixture
def run() -> Any:
    """Run a command with the options of `Settings`: its exit code or the settings that it was given."""

    def invoke(*args: str) -> Any:
        given: dict[str, Any] = {}
        app = typer.Typer(add_completion=False)

        @app.command()
        @settings_options(Settings)
        def command(**settings: Any) -> None:
            given.update(settings)

        result = CliRunner().invoke(app, args)
        return result.output if "--help" in args else given if result.exit_code == 0 else result.exit_code

    return invoke


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("", {}),
        ("--count 5 --rate 0.5", {"count": 5, "rate": 0.5}),
        ("--workers auto", {"workers": "auto"}),
        ("--workers 0", {"workers": 0}),
        ("--no-augment", {"augmented": False}),
        ("--layer conv1,conv2", {"layers": ("conv1", "conv2")}),
        ("--tracker csv --tracker wandb", {"trackers": ("csv", "wandb")}),
        ("--backbone nin:wide", {"backbone": {"name": "nin:wide"}}),
        ("--count 0", 2),
        ("--rate 2", 2),
        ("--workers many", 2),
        ("--internal 3", 2),
    ],
)
def test_given_options_arrive_by_field_name(run: Any, line: str, given: Any) -> None:
    assert run(*line.split()) == given


def test_the_help_shows_description_bounds_and_default(run: Any) -> None:
    lines = [" ".join(line.strip("│ ").split()) for line in run("--help").splitlines()]

    assert "--count N [x>=1] Number of images. Default: 3." in lines
    assert "--augment --no-augment <bool> Augment the images. Default: yes." in lines
    assert "--layer <str> Layers to read." in lines


def test_every_setting_of_pretraining_is_described_in_its_help() -> None:
    described = {p.name: p.help for p in load_command("pretrain").params}

    for name in flags_of(PretrainConfig):
        assert described[name].startswith(str(PretrainConfig.model_fields[name].description))


def test_what_may_change_on_resume_changes_no_result() -> None:
    may_change = {name for name, flag in flags_of(PretrainConfig).items() if flag.on_resume}

    kept = "max_steps workers device precision compile capture save_every eval_every stop_on_collapse trackers"
    same_images = "data_dir dataset on_bad_image max_bad_fraction"
    longer = "epochs"  # the schedule is stretched, and the command says so
    assert may_change == set(f"{kept} {same_images} {longer}".split())


def test_component_kinds_are_the_tables_of_the_settings() -> None:
    assert component_kinds(Settings) == ("backbone",)
