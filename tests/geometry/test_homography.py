import pytest
import torch

from avtcli.geometry.homography import (
    affine_in_from_out_from_corners,
    coefficients_from_matrix,
    corners_of,
    determinant,
    in_from_out_from_corners,
    inverse,
    is_proper,
    map_points,
    matrix_from_coefficients,
    product,
    unit_from_pixel,
    unit_homography,
    unit_last_entry,
)
from avtcli.seeding import keyed_generator

SIZES = [(32, 32), (48, 96), (97, 33)]


def random_matrices(n: int) -> torch.Tensor:
    return torch.eye(3).double() + 0.3 * torch.randn(n, 3, 3, generator=keyed_generator("matrices"), dtype=torch.float64)


def moved_corners(n: int, size: tuple[int, int]) -> torch.Tensor:
    shift = torch.rand(n, 4, 2, generator=keyed_generator("corners"), dtype=torch.float64) - 0.5
    return corners_of(size) + 0.4 * shift * torch.tensor([size[1], size[0]])


@pytest.mark.parametrize("size", SIZES)
def test_moved_corners_are_mapped_back_to_the_corners_of_the_image(size):
    transformed = moved_corners(50, size)
    mapped = map_points(in_from_out_from_corners(transformed, size), transformed)
    assert (mapped - corners_of(size)).abs().max() < 1e-11


@pytest.mark.parametrize("size", SIZES)
def test_the_closed_form_agrees_with_a_linear_solve(size):
    transformed, corners = moved_corners(20, size), corners_of(size)
    rows, values = [], []
    for i in range(4):
        x, y = transformed[:, i].unbind(1)
        u, v = (c.expand_as(x) for c in corners[i])
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        rows += [torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 1)]
        rows += [torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 1)]
        values += [u, v]
    solved = torch.linalg.solve(torch.stack(rows, 1), torch.stack(values, 1))
    found = coefficients_from_matrix(in_from_out_from_corners(transformed, size))
    assert torch.allclose(found, solved, rtol=1e-9, atol=1e-11)


def test_coefficients_and_matrices_are_two_forms_of_one():
    matrices = unit_last_entry(random_matrices(10))
    assert torch.equal(matrix_from_coefficients(coefficients_from_matrix(matrices)), matrices)


def test_product_inverse_and_determinant_are_those_of_linear_algebra():
    a, b = random_matrices(40)[:20], random_matrices(40)[20:]
    assert torch.allclose(product(a, b), a @ b, rtol=1e-13)
    assert torch.allclose(determinant(a), torch.linalg.det(a), rtol=1e-12)
    assert torch.allclose(inverse(a), torch.linalg.inv(a), rtol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_an_affine_fit_to_the_corners_is_the_least_squares_solution(size):
    transformed, corners = moved_corners(10, size), corners_of(size)
    design = torch.cat([corners, torch.ones(4, 1, dtype=torch.float64)], 1)
    fitted = torch.linalg.lstsq(design.expand(10, -1, -1), transformed).solution.mT  # (10, 2, 3), out_from_in
    bottom = torch.tensor([0.0, 0, 1], dtype=torch.float64).expand(10, 1, 3)
    expected = torch.linalg.inv(torch.cat([fitted, bottom], 1))
    assert torch.allclose(affine_in_from_out_from_corners(transformed, size), expected, rtol=1e-9, atol=1e-11)


def test_a_matrix_that_is_not_finite_or_folds_the_image_is_improper():
    matrices = torch.eye(3).double().repeat(3, 1, 1)
    matrices[1, 2, 0] = -1 / 16  # the denominator is 0 at x = 16
    matrices[2, 0, 0] = torch.nan
    assert is_proper(matrices, (32, 32)).tolist() == [True, False, False]


@pytest.mark.parametrize("size", SIZES)
def test_unit_homographies_have_determinant_one_and_map_the_square(size):
    matrices = in_from_out_from_corners(moved_corners(30, size), size)
    unit = unit_homography(matrices, size)
    assert torch.allclose(determinant(unit), torch.ones(30, dtype=torch.float64), rtol=1e-12)
    pixels_to_unit = unit_from_pixel(size, matrices)[None]
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    assert torch.allclose(map_points(pixels_to_unit, corners_of(size))[0], square)
    expected = map_points(pixels_to_unit, map_points(matrices, corners_of(size)))
    assert torch.allclose(map_points(unit, square), expected)


def test_a_matrix_of_negative_determinant_is_scaled_by_the_negative_root():
    flipped = torch.diag(torch.tensor([-2.0, 1, 1], dtype=torch.float64))[None]
    assert torch.allclose(determinant(unit_homography(flipped, (32, 32))), torch.ones(1, dtype=torch.float64))


def test_a_floor_bounds_a_collapsed_matrix():
    collapsed = torch.diag(torch.tensor([0.0, 0, 1], dtype=torch.float64))[None]
    assert unit_homography(collapsed, (32, 32), floor=0.01).isfinite().all()
