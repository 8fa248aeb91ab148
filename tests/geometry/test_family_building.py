"""Families by name, and sums of them."""

import json
from pathlib import Path

import pytest

from avtcli.config.resolution import options_from_texts
from avtcli.errors import AvtError
from avtcli.geometry.family_building import build_family
from tests.support import run_tiny


def family(name: str, *options: str):
    return build_family(name, options_from_texts(list(options), kinds=["transform"]).get("transform", {}))


def test_a_sum_has_the_components_of_its_parts_and_takes_their_options() -> None:
    made = family("translation+photometric", "transform.translation.shift=0.1")

    assert made.kind == "mixed"
    assert made.names[:2] == ("translation.tx", "translation.ty")
    assert made.dof == 2 + family("photometric").dof


@pytest.mark.parametrize("option", ["transform.shift=0.1", "transform.rotation.x=1", "transform.projective=1"])
def test_an_option_of_no_part_is_refused_with_the_right_syntax(option: str) -> None:
    with pytest.raises(AvtError, match=r"takes its parts' options, found .*Write -o transform\.projective\.KEY=VALUE, -o"):
        family("projective+photometric", option)


def test_an_unknown_part_gives_the_nearest() -> None:
    with pytest.raises(AvtError, match=r"No transform is called 'photometrik'\. Did you mean 'photometric'"):
        family("projective+photometrik")


def test_the_same_name_twice_is_refused() -> None:
    with pytest.raises(AvtError, match=r"The sum 'affine\+affine' has 'affine' twice"):
        family("affine+affine")


@pytest.mark.usefixtures("few_held_out_images")
@pytest.mark.parametrize(
    ("transform", "objective", "has_mace"),
    [
        ("projective+photometric", "avt", True),
        ("photometric", "aet", False),
        ("rotation", "rotnet", False),
        ("rotation", "gaussian", True),
        ("affine", "aet", True),
        ("euclidean", "aetv2", True),
        ("projective+photometric", "avt+simclr", True),
        ("affine+rotation", "rotnet+aet", False),
    ],
)
def test_every_kind_of_family_and_objective_trains_and_resumes(
    tmp_path: Path, transform: str, objective: str, has_mace: bool
) -> None:
    over = {"transform": {"name": transform}, "objective": {"name": objective}}
    run = run_tiny(tmp_path / "run", max_steps=2, **over)
    run_tiny(run, resume=True, max_steps=3, **over)
    result = json.loads((run / "result.json").read_text())

    assert result["steps"] == 3
    assert (result["mace_px"] is not None) == has_mace
