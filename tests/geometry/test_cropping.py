"""Crop and flip of a batch, against numpy on one image at a time."""

import numpy as np
import pytest
import torch

from avtcli.errors import ShapeError
from avtcli.geometry import cropping
from avtcli.geometry.cropping import centre_crop, crop_and_flip, to_float


def test_crops_and_flips_are_those_of_numpy_image_by_image() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 20, 24), dtype=torch.uint8, generator=generator)
    uniforms = torch.rand(50, 3, generator=generator, dtype=torch.float64)
    out = crop_and_flip(images, uniforms, crop=(16, 18), padding=2)

    for image, (u, v, f), got in zip(images.numpy(), uniforms.tolist(), out.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        top, left = int(u * (24 - 16 + 1)), int(v * (28 - 18 + 1))
        window = padded[:, top : top + 16, left : left + 18]
        np.testing.assert_array_equal(got, window[:, :, ::-1] if f < 0.5 else window)


def test_crops_on_a_cpu_are_those_on_other_devices() -> None:
    images = torch.arange(2 * 3 * 5 * 7).view(3, 2, 5, 7).transpose(0, 1)  # not contiguous
    rows, top, left, size = torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([3, 0]), (3, 4)
    expected = [images[0, :, 1:4, 3:7], images[1, :, 2:5, 0:4]]

    assert torch.equal(cropping._crop_strided(images, rows, top, left, size), torch.stack(expected))
    assert torch.equal(cropping._crop_indexed(images, top, left, None, size), torch.stack(expected))
    flipped = cropping._crop_indexed(images, top, left, torch.tensor([False, True]), size)
    assert torch.equal(flipped, torch.stack([expected[0], expected[1].flip(-1)]))


def test_a_crop_larger_than_the_padded_image_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"No crop of 9x4 px fits into 8x8 px\."):
        crop_and_flip(torch.zeros(1, 1, 4, 4), torch.zeros(1, 3), crop=(9, 4), padding=2)


def test_every_offset_is_reached() -> None:
    image = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6).expand(500, -1, -1, -1)
    uniforms = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    corners = crop_and_flip(image, uniforms, crop=(4, 4), flip=False)[:, 0, 0, 0]

    assert set(corners.tolist()) == {6 * row + column for row in range(3) for column in range(3)}


def test_the_centre_crop_rounds_offsets_up() -> None:
    image = torch.arange(35.0).view(1, 1, 5, 7)

    assert torch.equal(centre_crop(image, crop=(3, 4)), image[..., 1:4, 2:6])


def test_grey_levels_become_floats_from_0_to_1() -> None:
    assert torch.equal(to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([0, 0.2, 1]))
