import numpy as np
import pytest
import torch
from PIL import Image

from avtcli.errors import ShapeError
from avtcli.geometry import warp as module
from avtcli.geometry.homography import coefficients_from_matrix, in_from_out_from_corners, matrix_from_coefficients
from avtcli.geometry.warp import GREY, warp
from avtcli.seeding import keyed_generator
from avtplugins.transforms.projective import projective

torch.set_num_threads(1)

SIZES = [(32, 32), (48, 96), (97, 33)]


def random_levels(n: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(256, (n, 3, *size), generator=keyed_generator("levels", *size), dtype=torch.uint8)


def shifted(dx: float, dy: float) -> torch.Tensor:
    """in_from_out of an image transformed by (dx, dy)."""
    return torch.tensor([[[1.0, 0, -dx], [0, 1, -dy], [0, 0, 1]]], dtype=torch.float64)


def pillow_warp(image: torch.Tensor, coefficients: torch.Tensor, *, fill: int) -> torch.Tensor:
    source = Image.fromarray(image.permute(1, 2, 0).numpy())
    data = tuple(coefficients.tolist())
    transformed = source.transform(
        source.size, Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR, fillcolor=(fill, fill, fill)
    )
    return torch.from_numpy(np.array(transformed)).permute(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("fill", "level"), [(GREY, 128), (0.0, 0), (1.0, 255)])
def test_a_truncated_warp_is_that_of_pillow_to_one_level(size, fill, level):
    family, images = projective(), random_levels(4, size)
    coefficients = family.sample(4, size, keyed_generator(1))
    transformed = warp(images / 255, matrix_from_coefficients(coefficients), fill=fill, truncate=True) * 255
    expected = torch.stack([pillow_warp(i, c, fill=level) for i, c in zip(images, coefficients, strict=True)])
    difference = (transformed.round() - expected.float()).abs()
    assert difference.max() <= 1
    assert (difference == 0).float().mean() > 0.999


@pytest.mark.parametrize("size", SIZES)
def test_a_truncated_warp_of_even_colours_has_no_other_level(size):
    levels = torch.arange(256).view(-1, 1, 1, 1).expand(-1, 1, *size)
    matrices = projective().in_from_out(projective().sample(256, size, keyed_generator(4)), size)
    transformed = warp(levels / 255, matrices, fill="border", truncate=True)
    assert torch.equal(transformed, levels / 255)


def test_the_image_ends_where_its_far_edges_begin():
    # columns come from 1, 3, 5 ... 33, 35: the image of 33 columns ends before 33
    stretched = torch.tensor([[[2.0, 0, 0], [0, 1, 0], [0, 0, 1]]])
    transformed = warp(torch.ones(1, 1, 5, 33), stretched, fill=0.0)
    assert transformed[0, 0, 0].tolist() == [1.0] * 16 + [0.0] * 17


def test_gradients_reach_the_images_and_the_matrices():
    images = random_levels(1, (9, 12))[:, :1].double() / 255
    matrix = torch.tensor([[[0.9, 0.1, 0.3], [-0.1, 1.1, 0.23], [1e-3, -2e-3, 1.0]]], dtype=torch.float64)
    inputs = images.requires_grad_(), matrix.requires_grad_()
    assert torch.autograd.gradcheck(warp, inputs, eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("fill", [GREY, "border", "reflect"])
def test_the_identity_changes_nothing(fill):
    images = random_levels(2, (32, 32)) / 255
    assert torch.equal(warp(images, torch.eye(3).repeat(2, 1, 1), fill=fill), images)


def test_border_repeats_the_nearest_pixel():
    images = random_levels(1, (32, 32)) / 255
    transformed = warp(images, shifted(5, -3), fill="border")
    expected = torch.nn.functional.pad(images, (5, 0, 0, 3), mode="replicate")[..., 3:, :32]
    assert torch.allclose(transformed, expected, atol=1e-6)


def test_reflect_mirrors_the_image_at_its_edges():
    images = random_levels(1, (32, 32)) / 255
    transformed = warp(images, shifted(5, -3), fill="reflect")
    wide = torch.cat([images.flip(3), images, images.flip(3)], 3)
    whole = torch.cat([wide.flip(2), wide, wide.flip(2)], 2)
    assert torch.allclose(transformed, whole[..., 35:67, 27:59], atol=1e-6)


@pytest.mark.parametrize("fill", ["border", "reflect"])
def test_an_image_moved_far_away_keeps_the_range_of_its_values(fill):
    images = 0.25 + random_levels(1, (32, 32)) / 510
    transformed = warp(images, shifted(1e6, 1e-3), fill=fill)
    assert (transformed >= images.min() - 1e-6).all()
    assert (transformed <= images.max() + 1e-6).all()


def test_a_matrix_that_is_not_finite_gives_pure_fill():
    transformed = warp(torch.zeros(1, 1, 8, 8), torch.full((1, 3, 3), torch.nan))
    assert torch.equal(transformed, torch.full_like(transformed, GREY))


def test_a_row_does_not_depend_on_its_batch():
    size = (32, 32)
    images, corners = random_levels(6, size) / 255, torch.rand(6, 4, 2, generator=keyed_generator(2), dtype=torch.float64) * 8
    corners += torch.tensor([[0, 0], [24, 0], [24, 24], [0, 24]])
    matrices = in_from_out_from_corners(corners, size)
    assert torch.equal(warp(images, matrices)[2:4], warp(images[2:4], matrices[2:4]))


@pytest.mark.parametrize("fill", [GREY, "reflect"])
def test_a_batch_warped_in_parts_is_the_batch_warped_at_once(monkeypatch, fill):
    images, whole = random_levels(5, (32, 32)) / 255, []
    matrices = torch.cat([shifted(1.5 * i, -0.3) for i in range(5)])
    for images_at_once in (1, 2, 5):
        monkeypatch.setattr(module, "CACHE_BYTES", images_at_once * 4 * images[0].numel())
        whole.append(warp(images, matrices, fill=fill, truncate=True))
    assert torch.equal(whole[0], whole[2])
    assert torch.equal(whole[1], whole[2])
    assert warp(images[:0], matrices[:0]).shape == images[:0].shape


def test_half_precision_images_keep_their_type_and_exact_coordinates():
    images = random_levels(1, (32, 32)) / 255
    transformed = warp(images.bfloat16(), shifted(0.5, 0))
    assert transformed.dtype == torch.bfloat16
    assert (transformed.float() - warp(images, shifted(0.5, 0))).abs().max() < 0.01


def test_batches_of_different_lengths_are_refused():
    with pytest.raises(ShapeError, match=r"2 images need in_from_out of shape \(2, 3, 3\), found \(1, 3, 3\)"):
        warp(torch.zeros(2, 1, 8, 8), torch.eye(3)[None])


def test_coefficients_of_the_identity_are_one_and_zero():
    coefficients = coefficients_from_matrix(torch.eye(3)[None])
    assert coefficients.tolist() == [[1, 0, 0, 0, 1, 0, 0, 0]]
