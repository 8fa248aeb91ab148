"""Corners, coefficients and warps against the authors' solver and Pillow."""

import pytest
import torch
from safetensors.torch import load_file

from avtcli.geometry.homography import coefficients_from_matrix, in_from_out_from_corners, matrix_from_coefficients
from avtcli.geometry.warp import warp
from avtplugins.transforms.projective import move_corners
from tests.parity.tolerances import WARP_EQUAL, WARP_LEVELS, assert_near
from tests.parity.weights import GOLDEN, load_golden


@pytest.fixture(params=[32, 224])
def draws(request: pytest.FixtureRequest):
    """The golden draws at a size, field by field."""
    found = [draw for draw in load_golden("homographies.json") if draw["size"] == request.param]
    assert len(found) == 64
    return request.param, {field: torch.tensor([d[field] for d in found], dtype=torch.float64) for field in found[0]}


@pytest.fixture
def transformed(draws):
    side, fields = draws
    return move_corners(
        (side, side),
        shift=fields["shift"].reshape(-1, 4, 2),
        scale=fields["scale"],
        rotation=fields["rotation"].long(),
    )


def test_the_moved_corners_are_the_releases(draws, transformed):
    assert_near("corners", "corners", transformed, draws[1]["corners"].tolist())


def test_the_coefficients_are_the_releases(draws, transformed):
    side, fields = draws
    ours = coefficients_from_matrix(in_from_out_from_corners(transformed, (side, side)))
    assert_near("coefficients", "coefficients", ours, fields["coeffs"].tolist(), scale=fields["coeffs"].abs())


def test_warps_are_pillows():
    golden = load_file(GOLDEN / "warps.safetensors")
    source = golden["source"].permute(0, 3, 1, 2).float() / 255
    ours = warp(source, matrix_from_coefficients(golden["coeffs"]), truncate=True).mul(255).round().permute(0, 2, 3, 1)
    difference = (ours - golden["warped"].float()).abs().amax(-1)
    assert difference.max() <= WARP_LEVELS
    assert (difference == 0).double().mean() >= WARP_EQUAL
