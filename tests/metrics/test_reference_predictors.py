"""Reference predictors: the published errors of the release's distribution, and exact cases."""

import pytest
import torch
from torch import Tensor

from avtcli.contracts import TransformFamily
from avtcli.geometry.homography import corners_of, inverse, map_points
from avtcli.geometry.sum_family import SumFamily
from avtcli.metrics.reference_predictors import mean_matrix, reference_predictions, rotations_by_90_deg
from avtcli.metrics.transformation_error import corner_error
from avtcli.seeding import keyed_generator
from avtplugins.transforms.affine import affine
from avtplugins.transforms.photometric import photometric
from avtplugins.transforms.projective import projective
from avtplugins.transforms.rotation import rotation

SAMPLES = 20_000
RELEASE_32 = {"mean": (0, 0, 16, 0, 0, 16, 0, 0), "std": (1, 1, 20, 1, 1, 20, 0.015, 0.015)}
RELEASE_224 = {
    "mean": (0, 0, 112, 0, 0, 112, 6.4e-5, 6.4e-5),
    "std": (0.75, 0.75, 118, 0.75, 0.75, 118, 7.75e-4, 7.75e-4),
}
# (side, statistics, MACE in pixels, its last digit, MSE on the release's parameters), of 400 000 samples
PUBLISHED = [
    (
        32,
        RELEASE_32,
        {"identity": 29.0, "constant": 23.5, "rotation_oracle": 4.47},
        0.1,
        {"identity": 0.920, "constant": 0.514},
    ),
    (
        224,
        RELEASE_224,
        {"identity": 202.0, "constant": 164.0, "rotation_oracle": 28.9},
        1,
        {"identity": 1.671, "constant": 1.005},
    ),
]


def assert_mean(values: Tensor, expected: float, *, last_digit: float) -> None:
    """Within four standard errors and the rounding of the reference."""
    error = 4 * values.std().item() / len(values) ** 0.5
    assert abs(values.mean().item() - expected) < error + last_digit / 2


@pytest.mark.parametrize(("side", "statistics", "mace_px", "last_digit", "mse"), PUBLISHED)
def test_the_published_distribution_gives_the_published_errors(
    side: int,
    statistics: dict[str, tuple[float, ...]],
    mace_px: dict[str, float],
    last_digit: float,
    mse: dict[str, float],
) -> None:
    family, size = projective(target="coefficients", **statistics), (side, side)
    parameters = family.sample(SAMPLES, size, keyed_generator("trivial"))
    guesses = reference_predictions(family, parameters, size)
    true, target = family.in_from_out(parameters, size), family.target(parameters, size)

    assert set(guesses) == set(mace_px)
    for name, expected in mace_px.items():
        errors = corner_error(true, guesses[name].in_from_out, size)
        assert_mean(errors, expected, last_digit=last_digit / 10 if name == "rotation_oracle" else last_digit)
    for name, expected in mse.items():
        assert_mean((guesses[name].target - target).square().mean(1), expected, last_digit=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (20, 48)])
def test_a_90_degree_rotation_maps_each_corner_to_the_next(size: tuple[int, int]) -> None:
    corners, rotations = corners_of(size), rotations_by_90_deg(size)

    for k in range(4):
        transformed = map_points(inverse(rotations[k : k + 1]), corners)[0]
        torch.testing.assert_close(transformed, corners.roll(-k, 0), atol=1e-9, rtol=0)
    torch.testing.assert_close(map_points(rotations, torch.tensor([[size[1] / 2, size[0] / 2]]).double())[:, 0], centre(size))


def centre(size: tuple[int, int]) -> Tensor:
    return torch.tensor([[size[1] / 2, size[0] / 2]]).double().expand(4, 2)


def test_the_rotation_oracle_is_exact_for_the_rotation_family() -> None:
    family, size = rotation(), (32, 32)
    parameters = family.sample(50, size, keyed_generator(0))
    guess = reference_predictions(family, parameters, size)["rotation_oracle"]

    torch.testing.assert_close(guess.target, family.target(parameters, size))
    assert corner_error(family.in_from_out(parameters, size), guess.in_from_out, size).max() < 1e-9


@pytest.mark.parametrize("target", ["parameters", "coefficients", "corners"])
def test_the_constant_has_the_mean_matrix_for_every_kind_of_target(target: str) -> None:
    family, size = projective(target=target), (32, 32)
    guess = reference_predictions(family, family.sample(3, size, keyed_generator(0)), size)["constant"]
    coefficients = projective(target="coefficients")
    decoded = coefficients.in_from_out(coefficients.decode(torch.zeros(1, 8, dtype=torch.float64), size), size)

    assert torch.equal(guess.target, torch.zeros(3, family.dof, dtype=torch.float64))
    assert corner_error(mean_matrix(family, size), decoded, size).item() < 0.5  # of 23.5: two samples of the distribution


@pytest.mark.parametrize("family", [projective(), affine(), affine(target="coefficients"), projective(target="corners")])
def test_the_target_of_the_identity_decodes_to_the_identity(family: TransformFamily) -> None:
    size = (32, 32)
    guess = reference_predictions(family, family.sample(2, size, keyed_generator(0)), size)["identity"]

    assert torch.equal(guess.in_from_out[1], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(family.in_from_out(family.decode(guess.target, size), size), guess.in_from_out)


def test_a_photometric_family_has_the_constant_only() -> None:
    family = photometric()
    guesses = reference_predictions(family, family.sample(2, (32, 32), keyed_generator(0)), (32, 32))

    assert set(guesses) == {"constant"}
    assert guesses["constant"].in_from_out is None


def test_a_sum_has_matrices_without_targets() -> None:
    family = SumFamily([("projective", projective()), ("photometric", photometric())])
    guesses = reference_predictions(family, family.sample(4, (32, 32), keyed_generator(0)), (32, 32))

    assert [guesses[name].target is None for name in ("identity", "constant", "rotation_oracle")] == [True, False, True]
    assert guesses["rotation_oracle"].in_from_out.shape == (4, 3, 3)
