import numpy as np
import pytest
import torch
from scipy.linalg import logm, polar  # type: ignore[import-untyped]
from torch.distributions import Categorical, Independent, Normal

from avtcli import registry
from avtcli.contracts import Prediction, Target
from avtcli.errors import AvtError
from avtcli.geometry.sum_family import SumFamily
from avtcli.seeding import keyed_generator
from avtplugins.objectives.aet import aet
from avtplugins.objectives.aetv2 import NearestRotation, aetv2, rotation_angle
from avtplugins.objectives.avt import avt
from avtplugins.objectives.gaussian import gaussian
from avtplugins.objectives.rotnet import rotnet
from avtplugins.objectives.simclr import simclr
from avtplugins.transforms.affine import affine, translation
from avtplugins.transforms.photometric import photometric
from avtplugins.transforms.projective import projective
from avtplugins.transforms.rotation import rotation

torch.set_num_threads(1)

SIZE = (32, 48)


def target_of(family, n, size=SIZE):
    parameters = family.sample(n, size, keyed_generator("target"))
    return Target(family.target(parameters, size), parameters, family, size)


def made(build, family, **options):
    return build(vector_dim=4, family=family, **options)


def loss_of(build, mean, log_var, target, **options):
    """The loss of a given prediction, whatever the heads say."""
    objective = made(build, target.family, **options)
    objective.predict = lambda codes: Prediction(mean, log_var)
    return objective((mean, mean), (target,))


def outputs_of(objective):
    return objective.decoder.mean_head.out_features


def prediction(n, k, key, scale=0.5):
    return scale * torch.randn(n, k, generator=keyed_generator(key), dtype=torch.float64)


def rotations(angles):
    """About random axes, by Rodrigues' formula."""
    axes = torch.nn.functional.normalize(prediction(len(angles), 3, "axes"), dim=1)
    zero = torch.zeros(len(angles), dtype=torch.float64)
    x, y, z = axes.unbind(1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(-1, 3, 3)
    a = angles[:, None, None]
    return torch.eye(3).double() + a.sin() * cross + (1 - a.cos()) * cross @ cross


def test_gaussian_is_the_negative_log_likelihood_in_nats():
    target = target_of(affine(), 7)
    mean, log_var = prediction(7, 6, 1), prediction(7, 6, 2, scale=2)
    loss = loss_of(gaussian, mean, log_var, target)
    distribution = Independent(Normal(mean, (log_var / 2).exp()), 1)
    assert torch.allclose(loss.per_sample, -distribution.log_prob(target.values))
    assert torch.allclose(loss.parts["mse"], (mean - target.values).square().mean(1))
    assert torch.allclose(loss.parts["log_var"], log_var.mean(1))


def test_the_variance_that_minimises_gaussian_is_the_squared_error():
    target = target_of(translation(), 1)
    mean = target.values + torch.tensor([[0.5, 2.0]], dtype=torch.float64)
    log_var = torch.tensor([[0.25, 4.0]], dtype=torch.float64).log().requires_grad_()
    loss_of(gaussian, mean, log_var, target).per_sample.sum().backward()
    assert log_var.grad is not None
    assert log_var.grad.abs().max() < 1e-12


def test_gaussian_has_real_noise_and_a_free_variance():
    objective = made(gaussian, affine())
    assert (objective.noise_scale, objective.decoder.log_var_scale, outputs_of(objective)) == (1, 1, 6)
    assert objective.log_var_layer() is objective.decoder.log_var_head
    assert made(gaussian, affine(), noise_scale=0.1).noise_scale == 0.1


def test_avt_scales_its_log_variance_by_its_divisor():
    objective = made(avt, affine(), log_var_divisor=100)
    codes = tuple(torch.randn(2, 4, generator=keyed_generator(i)) for i in range(2))
    raw = objective.decoder.log_var_head(torch.cat(codes, 1))
    assert torch.allclose(objective.predict(codes).log_var, raw / 100)
    assert objective.noise_scale == 0.001


def test_avt_is_twice_the_gaussian_loss_up_to_its_constant_and_its_floor():
    target = target_of(projective(), 5)
    mean, log_var = prediction(5, 16, 3), prediction(5, 16, 4)
    without_floor = loss_of(avt, mean, log_var, target, variance_floor=0).per_sample
    nats = loss_of(gaussian, mean, log_var, target).per_sample
    assert torch.allclose(without_floor, 2 * nats - 16 * np.log(2 * np.pi))


def test_avt_adds_its_floor_to_the_variance():
    target = target_of(translation(), 1)
    mean, log_var = target.values + 3, torch.zeros(1, 2, dtype=torch.float64)
    loss = loss_of(avt, mean, log_var, target, variance_floor=0.5)
    assert loss.per_sample.tolist() == pytest.approx([2 * 9 / 1.5])


def test_aet_is_the_mean_squared_error():
    target = target_of(affine(), 5)
    mean = prediction(5, 6, 5)
    loss = loss_of(aet, mean, None, target).per_sample
    expected = torch.nn.functional.mse_loss(mean, target.values)
    assert torch.allclose(loss.mean(), expected)
    assert loss.shape == (5,)


def test_aet_has_no_noise_and_no_variance():
    objective = made(aet, affine())
    assert (objective.noise_scale, objective.log_var_layer(), outputs_of(objective)) == (0, None, 6)
    assert objective.views == ("original", "transformed")


def test_rotnet_is_the_cross_entropy_of_the_turn():
    target, logits = target_of(rotation(), 9), prediction(9, 4, 6, scale=2)
    loss = loss_of(rotnet, logits, None, target)
    classes = target.parameters[:, 0].long()
    assert torch.allclose(loss.per_sample, -Categorical(logits=logits).log_prob(classes))
    assert loss.parts["accuracy"].tolist() == (logits.argmax(1) == classes).double().tolist()


def test_rotnet_sees_the_transformed_image_alone_and_the_pair_by_option():
    assert made(rotnet, rotation()).views == ("transformed",)
    assert made(rotnet, rotation(), pair=True).views == ("original", "transformed")
    assert outputs_of(made(rotnet, rotation())) == 4


def test_only_rotnet_predicts_classes_and_only_simclr_nothing():
    predicted = [made(build, rotation()).prediction for build in (avt, gaussian, aet, aetv2, rotnet)]
    assert predicted == ["target"] * 4 + ["classes"]
    assert simclr(vector_dim=4).prediction is None


def test_rotnet_takes_a_sum_with_one_classified_part():
    family = SumFamily([("rotation", rotation()), ("photometric", photometric())])
    target = target_of(family, 4)
    confident = 100 * torch.nn.functional.one_hot(target.parameters[:, 0].long(), 4).double()
    assert outputs_of(made(rotnet, family)) == 4
    assert loss_of(rotnet, confident, None, target).per_sample.max() < 1e-9


def test_rotnet_refuses_a_family_without_classes():
    with pytest.raises(AvtError, match=r"'rotnet' needs a family with classes.*tx, ty. Choose --transform rotation"):
        made(rotnet, translation())


def unit_by_hand(matrix, size):
    """To the square [-1, 1] x [-1, 1] and determinant 1, in numpy."""
    unit = np.array([[2 / size[1], 0, -1], [0, 2 / size[0], -1], [0, 0, 1]])
    transformed = unit @ matrix @ np.linalg.inv(unit)
    return transformed / np.cbrt(np.linalg.det(transformed))


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (48, 96)])
@pytest.mark.parametrize("family", [projective(target="corners"), affine()], ids=["projective", "affine"])
def test_aetv2_is_the_length_of_the_logarithm_of_the_nearest_rotation(family, size):
    target = target_of(family, 12, size)
    mean = target.values + prediction(12, family.dof, 7, scale=0.2)
    loss = loss_of(aetv2, mean, None, target, residual_weight=0.7)
    true = family.in_from_out(target.parameters, size).numpy()
    decoded = family.in_from_out(family.decode(mean, size), size).numpy()
    for i in range(12):
        error = np.linalg.inv(unit_by_hand(true[i], size)) @ unit_by_hand(decoded[i], size)
        nearest, _ = polar(error)
        angle = np.linalg.norm(logm(nearest)) / np.sqrt(2)
        residual = np.linalg.norm(error - nearest)
        assert loss.parts["angle"][i].item() == pytest.approx(angle, rel=1e-6, abs=1e-8)
        assert loss.parts["residual"][i].item() == pytest.approx(residual, rel=1e-6)
        assert loss.per_sample[i].item() == pytest.approx(angle + 0.7 * residual, rel=1e-6)


@pytest.mark.parametrize("family", [projective(), affine(), rotation()], ids=["projective", "affine", "rotation"])
def test_aetv2_is_zero_at_the_truth_and_its_gradient_finite(family):
    target = target_of(family, 6)
    mean = target.values.clone().requires_grad_()
    loss = loss_of(aetv2, mean, None, target).per_sample
    loss.sum().backward()
    assert loss.abs().max() < 1e-7
    assert mean.grad.isfinite().all()


def test_aetv2_does_not_depend_on_the_size_of_the_image():
    small, large = (affine(target="coefficients", shift=0.25) for _ in range(2))
    losses = []
    for family, side in ((small, 32), (large, 320)):
        row = torch.tensor([[40.0, side / 8, -side / 16, 1.1, 10], [30.0, side / 8, 0, 0.9, 0]], dtype=torch.float64)
        # about the centre itself: the distribution's centre, half a pixel off, is not the same share of both sides
        matrices = family.in_from_out(row, (side - 1, side - 1))
        true, decoded = (family.distribution.parameters_from_matrix(m[None], (side, side)) for m in matrices)
        target = Target(family.target(true, (side, side)), true, family, (side, side))
        losses.append(loss_of(aetv2, family.target(decoded, (side, side)), None, target).per_sample.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 0.5, 3.0, 3.1415, torch.pi])
def test_the_angle_of_a_rotation_is_exact_and_its_gradient_finite(angle):
    matrix = rotations(torch.full((5,), angle, dtype=torch.float64)).requires_grad_()
    found = rotation_angle(matrix)
    found.sum().backward()
    assert torch.allclose(found, torch.tensor(angle, dtype=torch.float64), atol=1e-9)
    assert matrix.grad.isfinite().all()


def test_the_nearest_rotation_is_the_polar_factor_and_no_reflection():
    matrix = prediction(30, 3, 8, scale=1).reshape(10, 3, 3)
    nearest = NearestRotation.apply(matrix)
    assert torch.allclose(nearest @ nearest.mT, torch.eye(3).double(), atol=1e-12)
    assert torch.allclose(torch.linalg.det(nearest), torch.ones(10, dtype=torch.float64))
    upright = torch.linalg.det(matrix) > 0
    expected = np.stack([polar(m)[0] for m in matrix[upright].numpy()])
    assert torch.allclose(nearest[upright], torch.from_numpy(expected), atol=1e-10)


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_the_gradient_of_the_nearest_rotation_is_the_numerical_one(spread):
    start = rotations(torch.tensor([0.0, 0.4, 2.5], dtype=torch.float64)) + prediction(9, 3, 9, scale=spread).reshape(3, 3, 3)
    assert torch.autograd.gradcheck(NearestRotation.apply, (start.requires_grad_(),), atol=1e-6)


@pytest.mark.parametrize(
    ("family", "share"),
    [
        (projective(rotate=False, target="coefficients"), 0.1),
        (projective(rotate=False, target="corners"), 0.1),
        (projective(target="coefficients"), 0.5),
        (projective(), 0.6),
    ],
    ids=["coefficients", "corners", "from a collapsed image", "turns"],
)
def test_a_decoder_that_starts_at_the_mean_learns_by_aetv2(family, share):
    target = target_of(family, 16, (32, 32))
    mean = torch.nn.Parameter(0.1 * torch.randn(16, family.dof, generator=keyed_generator(10)))
    optimizer = torch.optim.Adam([mean], lr=0.02)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = loss_of(aetv2, mean, None, target).per_sample.mean()
        loss.backward()
        assert mean.grad is not None
        assert mean.grad.isfinite().all()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < share * losses[0]


@pytest.mark.parametrize(
    ("family", "kind"),
    [(photometric(), "photometric"), (SumFamily([("shift", translation()), ("photometric", photometric())]), "mixed")],
    ids=["photometric", "mixed"],
)
def test_aetv2_refuses_what_is_no_warp(family, kind):
    with pytest.raises(AvtError, match=f"'aetv2' needs a geometric family; this one is {kind}, its target is .*sharpness"):
        made(aetv2, family)


def test_aetv2_works_on_geometric_sums():
    family = SumFamily([("translation", translation()), ("affine", affine())])
    target = target_of(family, 3)
    assert outputs_of(made(aetv2, family)) == 8
    assert loss_of(aetv2, target.values, None, target).per_sample.max() < 1e-6


def test_options_out_of_range_are_refused():
    with pytest.raises(AvtError, match=r"objective\.residual_weight needs a weight of 0 or more, found -1"):
        made(aetv2, affine(), residual_weight=-1)
    with pytest.raises(AvtError, match=r"objective\.temperature and projection_dim need values above 0, found 0"):
        simclr(vector_dim=6, temperature=0)


@pytest.mark.parametrize("build", [avt, gaussian, aet, aetv2])
def test_every_loss_has_a_gradient_and_one_number_a_sample(build):
    target = target_of(affine(), 4)
    has_variance = made(build, target.family).log_var_layer() is not None
    mean, log_var = prediction(4, 6, 11).requires_grad_(), prediction(4, 6, 12).requires_grad_()
    loss = loss_of(build, mean, log_var if has_variance else None, target)
    loss.per_sample.sum().backward()
    assert loss.per_sample.shape == (4,)
    assert all(part.shape == (4,) for part in loss.parts.values())
    assert mean.grad.abs().min() > 0
    assert (log_var.grad is not None) == has_variance


def nt_xent_by_hand(first, second, temperature):
    """Equation 1 of the paper, term by term: the loss of each image, averaged over both of its views."""
    views = [*first, *second]
    n = len(first)

    def similarity(i, j):
        return float(views[i] @ views[j] / np.linalg.norm(views[i]) / np.linalg.norm(views[j]))

    def loss(i, j):
        others = sum(np.exp(similarity(i, k) / temperature) for k in range(2 * n) if k != i)
        return -np.log(np.exp(similarity(i, j) / temperature) / others)

    return [(loss(k, k + n) + loss(k + n, k)) / 2 for k in range(n)]


@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_simclr_is_nt_xent_over_all_views_of_the_batch(temperature):
    objective = simclr(vector_dim=6, temperature=temperature, projection_dim=5).double()
    codes = prediction(7, 6, 20), prediction(7, 6, 21)
    target = target_of(translation(), 7)
    projected = [objective.projection(code).detach().numpy() for code in codes]
    loss = objective(codes, (target, target))
    assert loss.per_sample.tolist() == pytest.approx(nt_xent_by_hand(*projected, temperature), rel=1e-9)


@pytest.mark.parametrize("option", ["log_var_divisor=0", "variance_floor=-1", "noise_scale=-1"])
def test_avt_refuses_constants_without_a_likelihood(option: str) -> None:
    key, _, value = option.partition("=")
    with pytest.raises(AvtError, match=f"option '{key}' should be greater than"):
        registry.resolve("objective", "avt", {key: value})
