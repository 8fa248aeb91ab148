import pytest
import torch

from avtcli.contracts import TransformFamily
from avtcli.geometry.sum_family import SumFamily
from avtcli.geometry.warp import warp
from avtcli.seeding import keyed_generator
from avtplugins.transforms.affine import affine, translation
from avtplugins.transforms.photometric import photometric
from avtplugins.transforms.projective import projective
from avtplugins.transforms.rotation import rotation

torch.set_num_threads(1)

SIZE = (32, 48)


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 3, *SIZE, generator=keyed_generator("images"))


def summed(*parts: str, **families: TransformFamily) -> SumFamily:
    known = {
        "affine": affine(truncate=False),
        "photometric": photometric(truncate=False),
        "projective": projective(truncate=False),
        "rotation": rotation(truncate=False),
        "translation": translation(truncate=False),
    } | families
    return SumFamily([(part, known[part]) for part in parts])


def test_parameters_targets_and_names_are_in_the_order_of_the_parts():
    family = summed("photometric", "projective")
    parameters = family.sample(5, SIZE, keyed_generator(1))
    target, (mean, std) = family.target(parameters, SIZE), family.statistics(SIZE)
    assert family.names[:5] == (
        "photometric.colour",
        "photometric.contrast",
        "photometric.brightness",
        "photometric.sharpness",
        "projective.u0",
    )
    assert (family.dof, len(family.units), parameters.shape) == (20, 20, (5, 12))
    first, second = family.parts
    assert torch.equal(target, torch.cat([first.target(parameters[:, :4], SIZE), second.target(parameters[:, 4:], SIZE)], 1))
    assert torch.equal(mean, torch.cat([first.statistics(SIZE)[0], second.statistics(SIZE)[0]]))
    assert torch.equal(std, torch.cat([first.statistics(SIZE)[1], second.statistics(SIZE)[1]]))


def test_decode_inverts_target():
    family = summed("affine", "photometric", "projective")
    parameters = family.sample(20, SIZE, keyed_generator(2))
    assert torch.allclose(family.decode(family.target(parameters, SIZE), SIZE), parameters, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        (("projective", "affine"), "geometric"),
        (("photometric",), "photometric"),
        (("projective", "photometric"), "mixed"),
    ],
)
def test_the_kind_of_a_sum_is_that_of_its_parts_or_mixed(parts, kind):
    assert summed(*parts).kind == kind


def test_the_samples_of_a_part_do_not_depend_on_the_other_parts():
    wide = summed("photometric", "affine").sample(6, SIZE, keyed_generator(3))
    narrow = summed("translation", "affine").sample(6, SIZE, keyed_generator(3))
    assert torch.equal(wide[:, 4:], narrow[:, 5:])


def test_two_equal_parts_sample_differently():
    family = SumFamily([("first", photometric()), ("second", photometric())])
    parameters = family.sample(3, SIZE, keyed_generator(4))
    assert not torch.equal(parameters[:, :4], parameters[:, 4:])


def test_photometric_after_geometric_is_one_after_the_other():
    family, x = summed("projective", "photometric"), images(4)
    parameters = family.sample(4, SIZE, keyed_generator(5))
    first, second = family.parts
    expected = second.apply(first.apply(x, parameters[:, :8]), parameters[:, 8:])
    assert torch.equal(family.apply(x, parameters), expected)


def test_two_warps_become_one_by_the_product_of_their_matrices():
    family, x = summed("projective", "affine"), images(4)
    parameters = family.sample(4, SIZE, keyed_generator(6))
    first, second = family.parts
    matrix = first.in_from_out(parameters[:, :8], SIZE) @ second.in_from_out(parameters[:, 8:], SIZE)
    assert torch.allclose(family.in_from_out(parameters, SIZE), matrix, rtol=1e-12)
    assert torch.allclose(family.apply(x, parameters), warp(x, matrix), atol=1e-5)


def test_the_product_is_the_first_warp_and_then_the_second():
    family, x = summed("rotation", "translation"), images(2)
    parameters = torch.tensor([[1.0, 0, 3, -2, 1, 0], [2, 0, -4, 5, 1, 0]], dtype=torch.float64)
    first, second = family.parts
    one_by_one = second.apply(first.apply(x, parameters[:, :1]), parameters[:, 1:])
    assert torch.allclose(family.apply(x, parameters), one_by_one, atol=1e-5)


def test_warps_that_fill_differently_stay_two():
    family = summed("translation", "affine", affine=affine(truncate=False, fill="border"))
    x = images(1)
    there_and_back = torch.tensor([[0, -9, 0, 1, 0, 0, 9, 0, 1, 0]], dtype=torch.float64)
    transformed = family.apply(x, there_and_back)
    assert torch.allclose(transformed[..., 9:], x[..., 9:], atol=1e-5)
    assert torch.allclose(transformed[..., :9], x[..., 9:10].expand(-1, -1, -1, 9), atol=1e-5)  # as one warp it would be x


def test_the_matrix_of_a_mixed_sum_is_that_of_its_geometric_part():
    family = summed("photometric", "affine")
    parameters = family.sample(3, SIZE, keyed_generator(7))
    assert torch.equal(family.in_from_out(parameters, SIZE), family.parts[1].in_from_out(parameters[:, 4:], SIZE))


def test_a_sum_without_a_geometric_part_has_no_matrix():
    with pytest.raises(NotImplementedError, match="SumFamily has no matrix"):
        summed("photometric").in_from_out(torch.ones(1, 4), SIZE)


def test_the_classes_of_a_sum_are_those_of_its_only_classified_part():
    family = summed("photometric", "rotation")
    parameters = family.sample(8, SIZE, keyed_generator(8))
    assert family.n_classes == 4
    assert family.classes(parameters).tolist() == parameters[:, 4].long().tolist()


def test_a_sum_without_classes_raises():
    family = summed("photometric", "affine")
    assert family.n_classes is None
    with pytest.raises(NotImplementedError, match="SumFamily has no classes"):
        family.classes(family.sample(1, SIZE, keyed_generator(9)))
