import pytest
import torch
from scipy.linalg import expm, logm  # type: ignore[import-untyped]

from avtcli.geometry.homography import determinant, is_proper
from avtcli.geometry.lie import algebra_from_matrix, matrix_from_algebra, matrix_log, unit_from_pixel, unit_homography
from avtcli.seeding import keyed_generator
from avtplugins.transforms.affine import affine
from avtplugins.transforms.projective import projective

torch.set_num_threads(1)

SIZES = [(32, 32), (224, 224), (48, 96)]
FAMILIES = {
    "projective": projective(rotate=False),
    "projective at its widest": projective(rotate=False, shift=0.199),
    "affine": affine(angle_deg=105, shear_deg=60),
    "affine without shear": affine(angle_deg=135, shear_deg=0),
}


def drawn(name: str, size: tuple[int, int], n: int = 30) -> torch.Tensor:
    family = FAMILIES[name]
    return family.in_from_out(family.sample(n, size, keyed_generator(name)), size)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_the_logarithm_is_that_of_scipy(name, size):
    unit = unit_homography(drawn(name, size), size)
    expected = torch.stack([torch.from_numpy(logm(m)) for m in unit.numpy()])
    assert (matrix_log(unit) - expected).abs().max() < 1e-11


def test_the_logarithm_of_a_translation_is_exact_though_it_has_one_eigenvector():
    matrix = torch.eye(3).double()[None].clone()
    matrix[0, 0, 2] = 1.5
    assert (matrix_log(matrix) - (matrix - torch.eye(3))).abs().max() < 1e-14


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_exponential_and_logarithm_are_inverses(name, size):
    matrix = drawn(name, size)
    back = matrix_from_algebra(algebra_from_matrix(matrix, size), size)
    assert torch.allclose(back, matrix, rtol=1e-9, atol=1e-10)


def test_the_exponential_is_that_of_scipy_between_unit_and_pixel_coordinates():
    size = (48, 96)
    algebra = 0.3 * torch.randn(5, 8, generator=keyed_generator(3), dtype=torch.float64)
    unit = unit_from_pixel(size, algebra)
    for vector, found in zip(algebra, matrix_from_algebra(algebra, size), strict=True):
        last = -vector[0] - vector[4]
        matrix = torch.linalg.inv(unit) @ torch.from_numpy(expm(torch.cat([vector, last[None]]).reshape(3, 3).numpy())) @ unit
        assert torch.allclose(found, matrix / matrix[2, 2], rtol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_unit_homographies_have_determinant_one_and_fix_the_square(size):
    unit = unit_homography(drawn("projective", size), size)
    assert torch.allclose(determinant(unit), torch.ones(len(unit), dtype=torch.float64), rtol=1e-12)
    corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    height, width = size
    pixels = torch.tensor([[0.0, 0], [width, 0], [width, height], [0, height]], dtype=torch.float64)
    mapped = unit_from_pixel(size, corners) @ torch.cat([pixels, torch.ones(4, 1, dtype=torch.float64)], 1).T
    assert torch.allclose(mapped[:2].T, corners)


def test_a_matrix_of_negative_determinant_is_scaled_by_the_negative_root():
    flipped = torch.diag(torch.tensor([-2.0, 1, 1], dtype=torch.float64))[None]
    assert torch.allclose(determinant(unit_homography(flipped, (32, 32))), torch.ones(1, dtype=torch.float64))


def test_a_floor_bounds_a_collapsed_matrix():
    collapsed = torch.diag(torch.tensor([0.0, 0, 1], dtype=torch.float64))[None]
    assert unit_homography(collapsed, (32, 32), floor=0.01).isfinite().all()


def test_quadrangles_of_the_widest_law_with_a_logarithm_stay_far_from_half_a_turn():
    size = (224, 224)
    family = projective(rotate=False, shift=0.199)
    matrix = family.in_from_out(family.sample(50_000, size, keyed_generator(4)), size)
    angles = torch.linalg.eigvals(unit_homography(matrix, size)).angle().abs()
    assert angles.max() < torch.pi / 6
    assert is_proper(matrix, size).float().mean() > 0.99
