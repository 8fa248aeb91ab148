"""Homographies as a Lie group: SL(3) in coordinates that do not know the image's size, and its algebra sl(3).

Convention:
    - unit coordinates: the image is the square [-1, 1] x [-1, 1], whatever its size and its sides' ratio
    - a homography of unit coordinates has determinant 1, so that its logarithm has trace 0: eight free numbers
    - an algebra vector is that logarithm row by row, its last entry left out
"""

import torch
from torch import Tensor

from avtcli.geometry.homography import determinant, inverse, product, unit_last_entry

ROOTS = 4
"""Square roots before the series: angles up to 135 degrees become 8.5 degrees."""
ROOT_STEPS = 7
"""Newton steps a root; they double the correct digits, and seven do for eigenvalues up to 135 degrees from 1."""
POWERS = (3, 5, 7, 9, 11, 13)
"""Of the series, after the first: at 8.5 degrees the next would be 1e-18 of the sum."""
CHUNK = 8192
"""Matrices at a time: the many intermediate results of an epoch's table stay in the processor's cache."""


def unit_from_pixel(size: tuple[int, int], like: Tensor) -> Tensor:
    """The map from pixels to unit coordinates, (3, 3), with the type and device of `like`."""
    height, width = size
    return torch.tensor([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]], dtype=like.dtype, device=like.device)


def unit_homography(in_from_out: Tensor, size: tuple[int, int], *, floor: float = 0.0) -> Tensor:
    """A homography in unit coordinates, scaled to determinant 1.

    The scale is the real cube root of the determinant, which keeps its sign: every invertible matrix is in SL(3).

    Args:
        in_from_out: pixels, (n, 3, 3).
        size: (height, width).
        floor: the smallest absolute determinant that is divided by; what lies below stays below 1, and its gradient bounded.

    Returns:
        (n, 3, 3); infinities for a singular matrix without a floor.
    """
    unit = unit_from_pixel(size, in_from_out)
    return unit_determinant(product(product(unit, in_from_out), inverse(unit)), floor=floor)


def unit_determinant(matrix: Tensor, *, floor: float = 0.0) -> Tensor:
    """A matrix over the real cube root of its determinant, the absolute value of which is at least `floor`: (n, 3, 3)."""
    det = determinant(matrix)[..., None, None]
    sign = torch.where(det < 0, -1.0, 1.0).to(det)
    return matrix * sign / det.abs().clamp(min=floor) ** (1 / 3)


def _square_root(matrix: Tensor) -> Tensor:
    """Denman and Beavers' iteration: Y <- (Y + Z^-1) / 2, Z <- (Z + Y^-1) / 2 from Y = matrix, Z = 1 leads to its root."""
    root, inverse_root = matrix, torch.eye(3).to(matrix).expand_as(matrix)
    for _ in range(ROOT_STEPS):
        root, inverse_root = (root + inverse(inverse_root)) / 2, (inverse_root + inverse(root)) / 2
    return root


def matrix_log(matrix: Tensor) -> Tensor:
    """The principal logarithm by inverse scaling and squaring (Higham, Functions of Matrices, 2008, section 11.5).

    Square roots bring the matrix close to 1; there log A = 2 artanh((A - 1)(A + 1)^-1), a series in odd powers. Unlike an
    eigendecomposition it takes matrices that have too few eigenvectors, such as translations.

    Args:
        matrix: (n, 3, 3), float64 for 1e-12; its eigenvalues are no further than 135 degrees from the positive axis.

    Returns:
        (n, 3, 3). A matrix with negative eigenvalues has no real logarithm: the result then means nothing.
    """
    return torch.cat([_log_of_chunk(chunk) for chunk in matrix.split(CHUNK)])  # type: ignore[no-untyped-call]


def _log_of_chunk(matrix: Tensor) -> Tensor:
    root = matrix
    for _ in range(ROOTS):
        root = _square_root(root)
    one = torch.eye(3).to(root)
    ratio = product(root - one, inverse(root + one))
    square, power, total = product(ratio, ratio), ratio, ratio
    for odd in POWERS:
        power = product(power, square)
        total = total + power / odd
    return total * 2.0 ** (ROOTS + 1)


def algebra_from_matrix(in_from_out: Tensor, size: tuple[int, int]) -> Tensor:
    """The algebra vectors (n, 8) of homographies (n, 3, 3); see `matrix_log` for those that have one."""
    return matrix_log(unit_homography(in_from_out, size)).flatten(-2)[..., :8]


def matrix_from_algebra(algebra: Tensor, size: tuple[int, int]) -> Tensor:
    """The homographies in_from_out (n, 3, 3), last entry 1, of algebra vectors (n, 8); differentiable, defined for all."""
    last = -algebra[..., 0:1] - algebra[..., 4:5]
    matrix = torch.linalg.matrix_exp(torch.cat([algebra, last], -1).reshape(*algebra.shape[:-1], 3, 3))
    unit = unit_from_pixel(size, algebra)
    return unit_last_entry(product(product(inverse(unit), matrix), unit))
