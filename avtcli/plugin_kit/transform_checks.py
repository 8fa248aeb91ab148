"""Conformance checks of families of transformations: samples, targets and their inverse, images and matrices."""

from typing import Final

import torch
from torch import Tensor

from avtcli.contracts import TransformFamily
from avtcli.geometry.warp import warp
from avtcli.plugin_kit.checking import described, expect
from avtcli.seeding import keyed_generator

SIZES: Final = ((32, 32), (32, 48))
"""(height, width): square and not square."""
DRAWS: Final = 64
STATISTICS_DRAWS: Final = 20_000
STATISTICS_TOLERANCE: Final = 0.1
"""Largest deviation of the mean from 0 and of the standard deviation from 1."""
LEVEL: Final = 1 / 255


def _drawn(family: TransformFamily, size: tuple[int, int], n: int = DRAWS) -> Tensor:
    return family.sample(n, size, keyed_generator("conformance draw"))


def _images(n: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Smooth images in [0, 1], which another interpolation changes little: (n, C, H, W)."""
    coarse = torch.rand(n, channels, 4, 4, generator=keyed_generator("conformance images"))
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False)


def the_values_of_a_target_have_names_and_units(family: TransformFamily) -> str:
    expect(family.kind in ("geometric", "photometric", "mixed"), f"kind is {family.kind!r}, expected geometric or photometric")
    expect(0 < family.dof == len(set(family.names)), f"names needs one for each value of the target, found {family.names}")
    expect(len(family.units) == family.dof, f"{family.dof} names have {len(family.units)} units, expected one each")
    return ", ".join(family.names)


def one_seed_gives_one_sample(family: TransformFamily) -> str:
    for size in SIZES:
        before = torch.get_rng_state()
        first, second = _drawn(family, size), _drawn(family, size)
        expect(torch.equal(before, torch.get_rng_state()), "sample used torch's own generator, expected the given one")
        expect(torch.equal(first, second), "one seed gave two samples: use the generator given to sample, and no other")
        expect(
            first.ndim == 2 and len(first) == DRAWS and first.dtype == torch.float64 and bool(first.isfinite().all()),
            f"sample({DRAWS}) gave {described(first)}, expected ({DRAWS}, k) float64",
        )
        expect(first.device.type == "cpu", f"sample gave parameters on {first.device}, expected the CPU")
    return f"k = {first.shape[1]}"


def targets_have_the_stated_statistics(family: TransformFamily) -> str:
    worst = [0.0, 0.0]
    for size in SIZES:
        for what, figure in zip(("mean", "deviation"), family.statistics(size), strict=True):
            expect(
                figure.shape == (family.dof,) and figure.dtype == torch.float64 and bool(figure.isfinite().all()),
                f"the {what} is {described(figure)}, expected ({family.dof},) float64",
            )
        target = family.target(_drawn(family, size, STATISTICS_DRAWS), size)
        expect(
            target.shape == (STATISTICS_DRAWS, family.dof),
            f"target gave {tuple(target.shape)}, expected {(STATISTICS_DRAWS, family.dof)}",
        )
        mean, std = target.mean(0), target.std(0)
        off = [mean.abs(), torch.where(std < 1e-6, 0.0, (std - 1).abs())]
        for i, name in enumerate(family.names):
            expect(
                max(float(o[i]) for o in off) < STATISTICS_TOLERANCE,
                f"over {STATISTICS_DRAWS} draws at {size[0]}x{size[1]} px, {name} of the target has mean {mean[i]:.3g} and "
                f"deviation {std[i]:.3g}, expected about 0 and 1: correct statistics",
            )
        worst = [max(w, float(o.max())) for w, o in zip(worst, off, strict=True)]
    return f"mean within {worst[0]:.2g} of 0, deviation within {worst[1]:.2g} of 1"


def decoding_is_the_inverse(family: TransformFamily) -> str:
    for size in SIZES:
        parameters = _drawn(family, size)
        target = family.target(parameters, size)
        decoded = family.decode(target, size)
        expect(decoded.shape == parameters.shape, f"decode gave {tuple(decoded.shape)}, expected {tuple(parameters.shape)}")
        off = float((family.target(decoded, size) - target).abs().max())
        expect(off < 1e-6, f"target(decode(target)) is off by {off:.2g}, expected the target itself")
        if family.kind == "geometric":
            transformed = family.in_from_out(decoded, size) - family.in_from_out(parameters, size)
            expect(float(transformed.abs().max()) < 1e-6 * max(size), "decode gives parameters of another warp")
    return f"off by {off:.1g}"


def decoding_has_finite_gradients(family: TransformFamily) -> str:
    for size in SIZES:
        target = family.target(_drawn(family, size), size).float()
        output = (target + 0.1 * torch.randn(target.shape, generator=keyed_generator("decoder"))).requires_grad_()
        family.decode(output, size).sum().backward()  # type: ignore[no-untyped-call]
        expect(
            output.grad is not None and bool(output.grad.isfinite().all()), "the gradient of decode is none, NaN or infinite"
        )
    return ""


def images_keep_their_shape_and_range(family: TransformFamily) -> str:
    for size in SIZES:
        for channels in (1, 3):
            images, parameters = _images(8, channels, size), _drawn(family, size, 8)
            transformed = family.apply(images, parameters)
            expect(
                transformed.shape == images.shape and transformed.dtype == images.dtype,
                f"apply made {described(transformed)} of {described(images)}, expected the same",
            )
            low, high = float(transformed.min()), float(transformed.max())
            expect(-1e-6 <= low and high <= 1 + 1e-6, f"apply gave values from {low:.3g} to {high:.3g}, expected 0 to 1")
            expect(torch.equal(images, _images(8, channels, size)), "apply changed its input images")
            expect(torch.equal(transformed, family.apply(images, parameters)), "apply gave two results for the same parameters")
            alone = family.apply(images[:1], parameters[:1])
            expect(torch.allclose(alone, transformed[:1], atol=1.5 * LEVEL), "apply to an image depends on its batch")
    return ""


def its_matrices_transform_the_images(family: TransformFamily) -> str:
    if family.kind != "geometric":
        return "no matrix"
    for size in SIZES:
        images, parameters = _images(8, 1, size), _drawn(family, size, 8)
        matrices = family.in_from_out(parameters, size)
        expect(matrices.shape == (8, 3, 3) and bool(matrices.isfinite().all()), f"in_from_out gave {described(matrices)}")
        inside = warp(torch.ones_like(images), matrices, fill=0.0) == 1
        off = (family.apply(images, parameters) - warp(images, matrices))[inside].abs()
        expect(
            off.numel() > 0 and float(off.max()) < 10 * LEVEL,
            f"apply and in_from_out transform images differently, by up to {float(off.max()) if off.numel() else 1:.2g} of the "
            "range: in_from_out maps an output pixel (x, y, 1) to an input pixel, pixel centres at i + 0.5",
        )
    return ""


def its_classes_are_below_n_classes(family: TransformFamily) -> str:
    if family.n_classes is None:
        return "no classes"
    classes = family.classes(_drawn(family, SIZES[0]))
    expect(classes.shape == (DRAWS,) and classes.dtype == torch.int64, f"classes gave {described(classes)}")
    low, high = int(classes.min()), int(classes.max())
    expect(0 <= low and high < family.n_classes, f"classes run from {low} to {high}, expected 0 to {family.n_classes - 1}")
    return f"{family.n_classes}"


CHECKS: Final = (
    the_values_of_a_target_have_names_and_units,
    one_seed_gives_one_sample,
    targets_have_the_stated_statistics,
    decoding_is_the_inverse,
    decoding_has_finite_gradients,
    images_keep_their_shape_and_range,
    its_matrices_transform_the_images,
    its_classes_are_below_n_classes,
)
