import re
from math import cos, radians, sin, sqrt

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from avtcli import registry
from avtcli.errors import AvtError, ShapeError
from avtcli.geometry.distributions import raw_target
from avtcli.geometry.homography import coefficients_from_matrix, corners_of, in_from_out_from_corners, map_points
from avtcli.seeding import keyed_generator
from avtplugins.transforms.affine import affine, euclidean, similarity, translation
from avtplugins.transforms.photometric import photometric
from avtplugins.transforms.projective import projective
from avtplugins.transforms.rotation import rotation

torch.set_num_threads(1)

SIZES = [(32, 32), (48, 96), (97, 33)]
GEOMETRIC = {
    **{f"projective {t}": projective(target=t) for t in ("parameters", "coefficients", "corners")},
    "projective without turns": projective(rotate=False),
    **{f"affine {t}": affine(target=t) for t in ("parameters", "coefficients", "corners")},
    **{f"similarity {t}": similarity(target=t) for t in ("parameters", "coefficients", "corners")},
    **{f"euclidean {t}": euclidean(target=t) for t in ("parameters", "coefficients", "corners")},
    **{f"translation {t}": translation(target=t) for t in ("parameters", "coefficients", "corners")},
    **{f"rotation {t}": rotation(target=t) for t in ("parameters", "coefficients", "corners")},
}
FAMILIES = {**GEOMETRIC, "photometric": photometric()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FAMILIES)
def test_decode_is_the_inverse_of_target(name, size):
    family = FAMILIES[name]
    parameters = family.sample(50, size, keyed_generator(1))
    decoded = family.decode(family.target(parameters, size), size)
    assert torch.allclose(decoded, parameters, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_targets_are_named_and_any_prediction_decodes_with_a_gradient(name):
    family, size = FAMILIES[name], (32, 48)
    target = family.target(family.sample(8, size, keyed_generator(2)), size)
    assert target.shape == (8, family.dof)
    assert len(family.units) == len(set(family.names)) == family.dof
    predicted = (target.float() + 0.1 * torch.randn(8, family.dof, generator=keyed_generator(3))).requires_grad_()
    family.decode(predicted, size).sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()
    assert predicted.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [*GEOMETRIC, "photometric"])
@pytest.mark.parametrize("size", [(32, 32), (48, 96)])
def test_statistics_are_those_of_another_large_sample(name, size):
    family = FAMILIES[name]
    target = family.target(family.sample(100_000, size, keyed_generator("another")), size)
    assert target.mean(0).abs().max() < 0.02
    assert (target.std(0) - 1).abs().max() < 0.02


def test_projective_statistics_are_the_published_ones_at_224_px():
    mean, std = projective(target="coefficients").statistics((224, 224))
    published_mean = torch.tensor([0.006, 0.009, 111.95, 0.006, 0.006, 112.27, 6.40e-5, 6.30e-5], dtype=torch.float64)
    published_std = torch.tensor([0.755, 0.754, 117.97, 0.754, 0.755, 117.93, 7.74e-4, 7.74e-4], dtype=torch.float64)
    assert ((mean - published_mean) / published_std).abs().max() < 0.02
    assert (std / published_std - 1).abs().max() < 0.01


def test_statistics_of_aet_values_are_those_of_uniform_distributions():
    mean, std = affine().statistics((1000, 1000))
    expected = torch.tensor([sqrt(1 / 2), sqrt(1 / 2), *[sqrt(1 / 3)] * 4], dtype=torch.float64)
    assert mean.abs().max() < 0.01
    assert torch.allclose(std, expected, rtol=0.01)


@pytest.mark.parametrize("make", [projective, affine])
def test_corner_targets_are_as_well_conditioned_at_any_size(make):
    small, large = ([s / side for s in make(target="corners").statistics((side, side))[1]] for side in (64, 640))
    assert torch.allclose(torch.stack(small), torch.stack(large), rtol=0.02)


def test_corner_targets_are_the_displacements_of_the_corners():
    family, size = translation(target="corners"), (32, 48)
    parameters = torch.tensor([[0, 5, -3, 1, 0]], dtype=torch.float64)
    raw = raw_target(family.distribution, "corners", parameters, size)
    assert torch.allclose(raw, torch.tensor([[5, -3] * 4], dtype=torch.float64))


@pytest.mark.parametrize("size", [(32, 32), (48, 96)])
def test_projective_values_are_the_turned_corners_and_the_offset_at_each_corner_of_the_output(size):
    corners = corners_of(size)
    turns = torch.arange(4).repeat(10)
    offsets = torch.randint(-4, 5, (40, 4, 2), generator=keyed_generator(8)).double()
    # the corner i is sent to the output's corner i + turn, and shifted
    transformed = torch.stack([(corners + offset).roll(-int(turn), 0) for offset, turn in zip(offsets, turns, strict=True)])
    parameters = coefficients_from_matrix(in_from_out_from_corners(transformed, size))
    raw = raw_target(projective().distribution, "parameters", parameters, size)
    turned = torch.stack([corners.roll(-int(turn), 0) for turn in turns])
    assert torch.allclose(raw, torch.cat([turned, offsets], 1).flatten(1), atol=1e-9)


def test_a_projective_turn_is_decoded_to_the_nearest_quarter():
    family, size = projective(), (32, 32)
    parameters = family.sample(50, size, keyed_generator(9))
    target = family.target(parameters, size)
    target[:, :8] *= torch.rand(50, 1, generator=keyed_generator(10), dtype=torch.float64) + 0.1
    target[:, :8] += 0.3 * torch.rand(50, 8, generator=keyed_generator(11), dtype=torch.float64) * target[:, :1].abs()
    assert torch.allclose(family.decode(target, size), parameters, rtol=1e-9, atol=1e-9)


def test_stated_statistics_are_used_as_they_are():
    family = projective(target="coefficients", mean=(0, 0, 16, 0, 0, 16, 0, 0), std=(1, 1, 20, 1, 1, 20, 0.015, 0.015))
    parameters = family.sample(4, (32, 32), keyed_generator(6))
    assert torch.allclose(family.target(parameters, (32, 32))[:, 2], (parameters[:, 2] - 16) / 20)


def test_a_constant_component_has_the_deviation_one():
    mean, std = affine(shear_deg=0).statistics((32, 32))
    assert (mean[5].item(), std[5].item()) == (0, 1)


def affine_by_hand(parameters, size):
    """AET's forward matrix, T = translate * centre * RSS * inverse centre, in numpy."""
    angle_deg, tx, ty, scale, shear_deg = parameters
    a, h, (height, width) = radians(angle_deg), radians(shear_deg), size
    move = np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]])
    centre = np.array([[1, 0, width / 2 + 0.5], [0, 1, height / 2 + 0.5], [0, 0, 1]])
    rss = np.array([[scale * cos(a), -scale * sin(a + h), 0], [scale * sin(a), scale * cos(a + h), 0], [0, 0, 1]])
    return move @ centre @ rss @ np.linalg.inv(centre)


@pytest.mark.parametrize("size", SIZES)
def test_affine_warps_by_the_inverse_of_the_documented_matrix(size):
    parameters = affine().sample(20, size, keyed_generator(7))
    forward = torch.tensor(np.stack([affine_by_hand(row, size) for row in parameters.tolist()]))
    assert torch.allclose(affine().in_from_out(parameters, size) @ forward, torch.eye(3).double(), atol=1e-11)


def test_affine_targets_are_the_six_values_of_aet():
    parameters = torch.tensor([[60, 3, -4, 0.85, 15]], dtype=torch.float64)
    raw = raw_target(affine().distribution, "parameters", parameters, (40, 32))
    expected = [0.5, sqrt(3) / 2, 3 / (0.2 * 32), -4 / (0.2 * 40), -0.5, 0.5]
    assert torch.allclose(raw, torch.tensor([expected], dtype=torch.float64))


def test_affine_samples_cover_their_ranges_and_shift_by_integer_pixels():
    sampled = affine().sample(20_000, (32, 64), keyed_generator(8))
    assert torch.equal(sampled[:, 1:3], sampled[:, 1:3].round())
    reach = torch.tensor([[-180, -13, -6, 0.7, -30], [180, 13, 6, 1.3, 30]], dtype=torch.float64)
    assert torch.allclose(torch.stack([sampled.min(0).values, sampled.max(0).values]), reach, rtol=0.01)


@pytest.mark.parametrize(
    ("make", "fixed"),
    [(similarity, {4: 0.0}), (euclidean, {3: 1.0, 4: 0.0}), (translation, {0: 0.0, 3: 1.0, 4: 0.0})],
)
def test_narrower_families_fix_what_they_do_not_name(make, fixed):
    sampled = make().sample(100, (32, 32), keyed_generator(9))
    for column in range(5):
        assert (sampled[:, column].std() == 0) == (column in fixed)
    for column, value in fixed.items():
        assert sampled[0, column] == value


@pytest.mark.parametrize("make", [similarity, euclidean])
def test_any_prediction_decodes_to_a_map_of_the_family(make):
    family, size = make(target="corners"), (32, 48)
    predicted = torch.randn(5, 8, generator=keyed_generator(10), dtype=torch.float64)
    linear = family.in_from_out(family.decode(predicted, size), size)[:, :2, :2]
    gram = linear.mT @ linear
    assert torch.allclose(gram, gram[:, :1, :1] * torch.eye(2).double(), atol=1e-9)
    assert make is similarity or torch.allclose(gram[:, 0, 0], torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("size", SIZES)
def test_affine_images_are_those_of_pillow_to_one_level(size):
    levels = torch.randint(256, (3, 3, *size), generator=keyed_generator(11), dtype=torch.uint8)
    parameters = affine().sample(3, size, keyed_generator(12))
    transformed = affine().apply(levels / 255, parameters) * 255
    for image, matrix, found in zip(levels, affine().in_from_out(parameters, size), transformed, strict=True):
        source = Image.fromarray(image.permute(1, 2, 0).numpy())
        data = tuple(matrix.flatten()[:6].tolist())
        made = source.transform(source.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=(128,) * 3)
        assert (found - torch.tensor(np.array(made)).permute(2, 0, 1)).abs().max() <= 1.01


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("side", [28, 32, 97, 224])
def test_rotations_of_a_square_are_rot90(side, truncate):
    images = torch.randint(256, (4, 3, side, side), generator=keyed_generator(13)) / 255
    rotated = rotation(truncate=truncate).apply(images, torch.arange(4.0)[:, None])
    expected = torch.stack([torch.rot90(image, k, (1, 2)) for k, image in enumerate(images)])
    assert torch.equal(rotated, expected)


def test_rotations_of_an_oblong_keep_its_canvas_and_show_no_fill():
    corners = corners_of((48, 96))
    mapped = map_points(rotation().in_from_out(torch.arange(4.0)[:, None].double(), (48, 96)), corners)
    for k in range(4):
        assert torch.equal(mapped[k], corners[[(i + k) % 4 for i in range(4)]])


def test_fractional_rotations_have_the_class_of_the_nearest():
    turns = torch.tensor([[0.4], [0.6], [2.4], [3.6]])
    assert rotation().n_classes == 4
    assert rotation().classes(turns).tolist() == [0, 1, 2, 0]


def test_rotations_are_sampled_equally_often():
    sampled = rotation().sample(40_000, (32, 32), keyed_generator(14))
    assert torch.allclose(sampled.long().flatten().bincount() / 40_000, torch.tensor(0.25), atol=0.01)


def test_a_family_without_classes_reports_that():
    with pytest.raises(NotImplementedError, match="ProjectiveDistribution has no classes"):
        projective().classes(torch.zeros(1, 8))


def test_options_of_a_geometric_plugin_are_its_own_and_the_shared_ones():
    names = registry.options(registry.info("transform", "translation"))
    assert names == ["shift", "target", "fill", "fill_value", "truncate", "mean", "std"]
    family = registry.build("transform", "translation", {"target": "corners", "std": ["1"] * 8, "mean": [0] * 8})
    assert (family.options.target, family.options.std) == ("corners", (1.0,) * 8)
    with pytest.raises(AvtError, match="option 'target' should be 'parameters', 'coefficients' or 'corners', found 'sl3'"):
        registry.build("transform", "translation", {"target": "sl3"})


@pytest.mark.parametrize("operation", ["colour", "contrast", "brightness", "sharpness"])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_enhancement_is_that_of_pillow_to_one_level(operation, channels):
    levels = torch.randint(256, (6, channels, 40, 24), generator=keyed_generator(15), dtype=torch.uint8)
    levels[:3] = levels[:3] // 4 + 100  # low contrast, so that nothing is clipped
    factors = torch.ones(6, 4, dtype=torch.float64)
    column = photometric().names.index(operation)
    factors[:, column] = torch.linspace(0.2, 1.8, 6)
    found = photometric().apply(levels / 255, factors) * 255
    enhancer = {"colour": "Color"}.get(operation, operation.capitalize())
    for image, factor, one in zip(levels, factors[:, column].tolist(), found, strict=True):
        array = image.permute(1, 2, 0).numpy() if channels == 3 else image[0].numpy()
        made = np.array(getattr(ImageEnhance, enhancer)(Image.fromarray(array)).enhance(factor)).reshape(40, 24, channels)
        assert (one - torch.tensor(made).permute(2, 0, 1)).abs().max() <= 1.01


def test_all_four_enhancements_follow_pillow_in_the_order_of_ccbs():
    levels = torch.randint(256, (8, 3, 32, 32), generator=keyed_generator(16), dtype=torch.uint8)
    factors = photometric().sample(8, (32, 32), keyed_generator(17))
    found = photometric().apply(levels / 255, factors) * 255
    for image, row, one in zip(levels, factors.tolist(), found, strict=True):
        made = Image.fromarray(image.permute(1, 2, 0).numpy())
        for enhancer, factor in zip(("Color", "Contrast", "Brightness", "Sharpness"), row, strict=True):
            made = getattr(ImageEnhance, enhancer)(made).enhance(factor)
        difference = (one - torch.tensor(np.array(made)).permute(2, 0, 1)).abs()
        assert difference.max() <= 2.01
        assert difference.mean() < 0.01


def test_factors_of_one_change_nothing_and_values_stay_in_range():
    images = torch.rand(4, 3, 16, 16, generator=keyed_generator(18))
    family = photometric(truncate=False)
    assert torch.allclose(family.apply(images, torch.ones(4, 4)), images, atol=1e-6)
    enhanced = family.apply(images, torch.full((4, 4), 1.8))
    assert enhanced.min() >= 0
    assert enhanced.max() <= 1


def test_a_truncated_enhancement_is_close_to_the_exact_one():
    levels = torch.randint(64, 192, (4, 3, 16, 16), generator=keyed_generator(19)) / 255
    factors = torch.full((4, 4), 0.9)
    exact, whole = (photometric(truncate=t).apply(levels, factors) for t in (False, True))
    assert 0 < (exact - whole).abs().max() < 6 / 255


def test_colour_leaves_grey_images_alone():
    images = torch.randint(256, (2, 1, 16, 16), generator=keyed_generator(20)) / 255
    factors = torch.tensor([[0.2, 1, 1, 1], [1.8, 1, 1, 1]])
    assert torch.allclose(photometric().apply(images, factors), images, atol=1e-6)


def test_photometric_families_have_no_matrix_and_need_1_or_3_channels():
    with pytest.raises(NotImplementedError, match="Photometric has no matrix"):
        photometric().in_from_out(torch.ones(1, 4), (32, 32))
    with pytest.raises(ShapeError, match="'photometric' needs images of 1 or 3 channels, found 4"):
        photometric().apply(torch.zeros(1, 4, 8, 8), torch.ones(1, 4))


def test_fixed_factors_have_the_deviation_one():
    assert photometric(low=0.5, high=0.5).statistics((32, 32))[1].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("fill", "value", "expected"), [("grey", 0.3, 128 / 255), ("constant", 0.2, 0.2), ("border", 0, 0.4), ("reflect", 0, 0.6)]
)
def test_fill_defines_what_lies_outside(fill, value, expected):
    family = translation(fill=fill, fill_value=value, truncate=False)
    images = torch.full((1, 1, 8, 8), 0.4)
    images[..., 3] = 0.6
    transformed = family.apply(images, torch.tensor([[0.0, 4, 0, 1, 0]]))
    assert transformed[0, 0, 0, 0] == pytest.approx(expected)


@pytest.mark.parametrize("make", [projective, affine, similarity, euclidean, translation, rotation, photometric])
def test_images_may_be_of_any_size_and_keep_it(make):
    images = torch.rand(2, 3, 24, 40, generator=keyed_generator(21))
    transformed = make().apply(images, make().sample(2, (24, 40), keyed_generator(22)))
    assert transformed.shape == images.shape
    assert not torch.equal(transformed, images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: affine(mean=(0,) * 7, std=(1,) * 6),
            "transform.mean needs 6 numbers (cos, sin, tx, ty, scale, shear), found 7",
        ),
        (
            lambda: affine(mean=(0,) * 6, std=(1,) * 8),
            "transform.std needs 6 numbers (cos, sin, tx, ty, scale, shear), found 8",
        ),
        (lambda: translation(mean=(0, 0)), "transform.mean and transform.std go together"),
        (lambda: translation(mean=(0, 0), std=(1, 0)), "transform.std needs numbers above 0, found 0"),
        (lambda: rotation(fill="constant", fill_value=128), "transform.fill_value needs a value from 0 (black) to 1"),
        (lambda: projective(scale_low=1.3), "transform.scale_low and scale_high need 0 < low <= high, found 1.3 and 1.2"),
        (lambda: projective(shift=0.25), "transform.shift needs a fraction of the side from 0 to below 0.25, found 0.25"),
        (lambda: affine(angle_deg=181), "transform.angle_deg needs a largest angle from 0 to 180 degrees, found 181"),
        (lambda: affine(shear_deg=61), "transform.shear_deg needs a largest shear from 0 to 60 degrees, found 61"),
        (lambda: similarity(scale_low=0), "transform.scale_low and scale_high need 0 < low <= high, found 0 and 1.3"),
        (lambda: euclidean(shift=2), "transform.shift needs a fraction of the side from 0 to 1, found 2"),
        (lambda: photometric(low=2), "transform.low and high need 0 <= low <= high, found 2 and 1.8"),
    ],
)
def test_invalid_options_are_refused(make, message):
    with pytest.raises(AvtError, match=re.escape(message)):
        make()
