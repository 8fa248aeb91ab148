"""Homographies in closed form: corners, coefficients, matrices, points.

Convention:
    - coordinates are (x, y) in pixels, origin at the top left; pixel i covers [i, i + 1) and has its centre at i + 0.5
    - corners come in the order (0, 0), (W, 0), (W, H), (0, H)
    - matrices are in_from_out: they map an output pixel (x, y, 1) to an input pixel, Pillow's direction
    - the eight coefficients are those of Pillow's PERSPECTIVE: the matrix row by row without its last entry, which is 1
    - unit coordinates: the image is the square [-1, 1] x [-1, 1], whatever its size and aspect ratio
"""

import math

import torch
from torch import Tensor


def corners_of(size: tuple[int, int]) -> Tensor:
    """The corners of an image of (height, width): (4, 2), float64."""
    height, width = size
    return torch.tensor([[0, 0], [width, 0], [width, height], [0, height]], dtype=torch.float64)


def in_from_out_from_corners(transformed: Tensor, size: tuple[int, int]) -> Tensor:
    """The homographies that map transformed corners back to the corners of the image.

    Heckbert's closed form (Fundamentals of Texture Mapping and Image Warping, 1989, section 2.2.3) maps the unit square to a
    quadrilateral; its adjugate, scaled by the image's width and height, maps back.

    Args:
        transformed: the four corners in the output, (n, 4, 2), pixels; float64 gives 1e-13 of a pixel.
        size: (height, width).

    Returns:
        (n, 3, 3), last entry 1. Collinear corners give infinities or NaN: see `is_proper`.
    """
    height, width = size
    # eight contiguous rows
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = transformed.movedim((-2, -1), (0, 1)).contiguous()
    dx1, dx2, dx3 = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, dy3 = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    det = dx1 * dy2 - dx2 * dy1
    # unit square -> quadrilateral: ((a, b, c), (d, e, f), (g, h, 1))
    g, h = (dx3 * dy2 - dx2 * dy3) / det, (dx1 * dy3 - dx3 * dy1) / det
    a, b, c = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    d, e, f = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    adjugate = [
        *(width * (e - f * h), width * (c * h - b), width * (b * f - c * e)),
        *(height * (f * g - d), height * (a - c * g), height * (c * d - a * f)),
        *(d * h - e * g, b * g - a * h, a * e - b * d),
    ]
    matrix = torch.stack([entry / adjugate[8] for entry in adjugate])
    return matrix.movedim(0, -1).reshape(*transformed.shape[:-2], 3, 3)


def coefficients_from_matrix(in_from_out: Tensor) -> Tensor:
    """(n, 3, 3) with a last entry of 1 -> (n, 8), Pillow's order."""
    return in_from_out.flatten(-2)[..., :8]


def matrix_from_coefficients(coefficients: Tensor) -> Tensor:
    """(n, 8) in Pillow's order -> (n, 3, 3) with a last entry of 1."""
    one = torch.ones_like(coefficients[..., :1])
    return torch.cat([coefficients, one], -1).reshape(*coefficients.shape[:-1], 3, 3)


def determinant(matrix: Tensor) -> Tensor:
    """(n, 3, 3) -> (n,), element-wise as `product`."""
    first, second, third = matrix.unbind(-2)
    det: Tensor = (first * torch.linalg.cross(second, third)).sum(-1)
    return det


def inverse(matrix: Tensor) -> Tensor:
    """(n, 3, 3) -> (n, 3, 3), the adjugate over the determinant; infinities or NaN for a singular matrix."""
    first, second, third = matrix.unbind(-2)
    crosses = [torch.linalg.cross(second, third), torch.linalg.cross(third, first), torch.linalg.cross(first, second)]
    return torch.stack(crosses, -1) / determinant(matrix)[..., None, None]


def product(a_from_b: Tensor, b_from_c: Tensor) -> Tensor:
    """a_from_c, (n, 3, 3): the matrix product, element-wise, since a matrix multiplication may run in TF32."""
    return (a_from_b[..., :, :, None] * b_from_c[..., None, :, :]).sum(-2)


def unit_last_entry(matrix: Tensor) -> Tensor:
    """The same homographies, (n, 3, 3), with a last entry of 1."""
    return matrix / matrix[..., 2:, 2:]


def affine_in_from_out_from_corners(transformed: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverses of the affine maps that fit the transformed corners best in least squares.

    The four corners are a rectangle about its centre, so that the normal equations are diagonal: the columns of
    out_from_in are mean differences of opposite sides. Arguments as for `in_from_out_from_corners`; the bottom row of the
    result is (0, 0, 1).
    """
    height, width = size
    top_left, top_right, bottom_right, bottom_left = transformed.unbind(-2)
    x_column = (top_right + bottom_right - top_left - bottom_left) / (2 * width)
    y_column = (bottom_left + bottom_right - top_left - top_right) / (2 * height)
    origin = transformed.mean(-2) - x_column * (width / 2) - y_column * (height / 2)
    upper = torch.stack([x_column, y_column, origin], -1)
    bottom = torch.zeros_like(upper[..., :1, :])
    bottom[..., 2] = 1
    return unit_last_entry(inverse(torch.cat([upper, bottom], -2)))


def map_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Map points (p, 2) or (n, p, 2), as (x, y), by homographies (n, 3, 3): (n, p, 2).

    The products are element-wise: a matrix multiplication may run in TF32, which costs a tenth of a pixel at 224 px.
    """
    x, y = points[..., 0], points[..., 1]
    m = matrix[:, None].unbind(-2)  # three rows of (n, 1, 3)
    u, v, w = (row[..., 0] * x + row[..., 1] * y + row[..., 2] for row in m)
    return torch.stack([u / w, v / w], -1)


def corner_turns(in_from_out: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The multiple of 90 degrees that is nearest to each homography's rotation of the corners.

    The rotation is that of the similarity which fits the mapped corners best in least squares, in coordinates in which the
    image is a square. With k turns, the transformed corner i is near the image's corner (i + k) mod 4.

    Args:
        in_from_out: (n, 3, 3).
        size: (height, width).

    Returns:
        The turns k, (n,) int64 in 0..3, or -1 for a matrix that is not finite or maps all corners to one point; and how far the
        rotation is from k turns, (n,), degrees in [0, 45].
    """
    corners = corners_of(size).to(in_from_out)
    centre, sides = corners.mean(0), corners.amax(0)
    old = torch.view_as_complex((corners - centre) / sides)
    new = torch.view_as_complex((map_points(in_from_out, corners) - centre) / sides)
    product = (new.conj() * old).sum(-1)  # of the inverse map, which has the opposite rotation
    quarters = product.angle() / (math.pi / 2)
    defined = quarters.isfinite() & (product.abs() > 0)
    return torch.where(defined, quarters.round().long() % 4, -1), 90 * (quarters - quarters.round()).abs()


def is_proper(in_from_out: Tensor, size: tuple[int, int]) -> Tensor:
    """Whether each homography is finite and keeps the image on one side of its horizon: (n,) bool.

    A NaN matrix warps to pure fill, and a horizon inside the image folds it; `warp` raises no error for either.
    """
    corners = corners_of(size).to(in_from_out)
    bottom = in_from_out[:, 2, :]
    denominators = bottom[:, None, 0] * corners[:, 0] + bottom[:, None, 1] * corners[:, 1] + bottom[:, None, 2]
    return in_from_out.isfinite().all(-1).all(-1) & (denominators > 0).all(-1)


def unit_from_pixel(size: tuple[int, int], like: Tensor) -> Tensor:
    """The map from pixels to unit coordinates, (3, 3), with the type and device of `like`."""
    height, width = size
    return torch.tensor([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]], dtype=like.dtype, device=like.device)


def unit_homography(in_from_out: Tensor, size: tuple[int, int], *, floor: float = 0.0) -> Tensor:
    """Homographies in unit coordinates, scaled to determinant 1: elements of SL(3).

    The scale is the real cube root of the determinant and keeps its sign. `floor` is a lower bound of the absolute determinant
    in the scale, which bounds the gradient of singular matrices; without it they give infinities.
    """
    unit = unit_from_pixel(size, in_from_out)
    matrix = product(product(unit, in_from_out), inverse(unit))
    det = determinant(matrix)[..., None, None]
    sign = torch.where(det < 0, -1.0, 1.0).to(det)
    return matrix * sign / det.abs().clamp(min=floor) ** (1 / 3)
