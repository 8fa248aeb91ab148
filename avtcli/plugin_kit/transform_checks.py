"""Conformance checks of families of transformations: samples, targets and their inverse, images and matrices."""

from typing import Final

import torch
from torch import Tensor

from avtcli import registry
from avtcli.contracts import Size, TransformFamily
from avtcli.geometry.warp import warp
from avtcli.plugin_kit.checking import Trial, checks_of, described, expect, expect_tensor
from avtcli.seeding import keyed_generator

SIZES: Final = ((32, 32), (32, 48))  # (height, width)
DRAWS: Final = 64
STATISTICS_DRAWS: Final = 20_000
STATISTICS_TOLERANCE: Final = 0.1  # of the mean, expected to be 0, and of the standard deviation, expected to be 1
LEVEL: Final = 1 / 255


def trial(spec: str) -> Trial:
    """Build a family for its checks."""
    return CHECKS, registry.build("transform", spec, {})


def _drawn(family: TransformFamily, size: Size, n: int = DRAWS) -> Tensor:
    return family.sample(n, size, keyed_generator("conformance draw"))


def _images(n: int, channels: int, size: Size) -> Tensor:
    """Smooth images in [0, 1], which another interpolation changes little: (n, C, H, W)."""
    coarse = torch.rand(n, channels, 4, 4, generator=keyed_generator("conformance images"))
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False)


def the_values_of_a_target_have_names_and_units(family: TransformFamily) -> str:
    """`kind`, `names` and `units` are set."""
    expect(family.kind in ("geometric", "photometric", "mixed"), f"kind is {family.kind!r}, expected geometric or photometric")
    expect(0 < family.dof == len(set(family.names)), f"names needs one for each value of the target, found {family.names}")
    expect(len(family.units) == family.dof, f"{family.dof} names have {len(family.units)} units, expected one each")
    return ", ".join(family.names)


def one_seed_gives_one_sample(family: TransformFamily) -> str:
    """Parameters are (n, k), float64 and finite, and determined by the given generator."""
    for size in SIZES:
        before = torch.get_rng_state()
        first, second = _drawn(family, size), _drawn(family, size)
        expect(torch.equal(before, torch.get_rng_state()), "sample used torch's own generator, expected the given one")
        expect(torch.equal(first, second), "one seed gave two samples: use the generator given to sample, and no other")
        fine = first.ndim == 2 and len(first) == DRAWS and first.dtype == torch.float64 and bool(first.isfinite().all())
        expect(fine, f"sample({DRAWS}) gave {described(first)}, expected ({DRAWS}, k) float64")
        expect(first.device.type == "cpu", f"sample gave parameters on {first.device}, expected the CPU")
    return f"k = {first.shape[1]}"


def targets_have_the_stated_statistics(family: TransformFamily) -> str:
    """Under its distribution a target has mean 0 and standard deviation 1; a constant value has deviation 0."""
    worst = [0.0, 0.0]
    for size in SIZES:
        for what, figure in zip(("mean", "deviation"), family.statistics(size), strict=True):
            expect_tensor(f"the {what}", figure, (family.dof,), torch.float64)
        target = family.target(_drawn(family, size, STATISTICS_DRAWS), size)
        expect_tensor("the target", target, (STATISTICS_DRAWS, family.dof))
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
    """A decoded target gives the same target, and the same warp."""
    for size in SIZES:
        parameters = _drawn(family, size)
        target = family.target(parameters, size)
        decoded = family.decode(target, size)
        expect_tensor("the decoded target", decoded, tuple(parameters.shape))
        off = float((family.target(decoded, size) - target).abs().max())
        expect(off < 1e-6, f"target(decode(target)) is off by {off:.2g}, expected the target itself")
        if family.kind == "geometric":
            transformed = family.in_from_out(decoded, size) - family.in_from_out(parameters, size)
            expect(float(transformed.abs().max()) < 1e-6 * max(size), "decode gives parameters of another warp")
    return f"off by {off:.1g}"


def decoding_has_finite_gradients(family: TransformFamily) -> None:
    """At a decoder's output near the target, in float32."""
    for size in SIZES:
        target = family.target(_drawn(family, size), size).float()
        output = (target + 0.1 * torch.randn(target.shape, generator=keyed_generator("decoder"))).requires_grad_()
        family.decode(output, size).sum().backward()  # type: ignore[no-untyped-call]
        fine = output.grad is not None and bool(output.grad.isfinite().all())
        expect(fine, "the gradient of decode is none, NaN or infinite")


def images_keep_their_shape_and_range(family: TransformFamily) -> None:
    """Float images of one or three channels stay in [0, 1]; equal parameters give equal results; the input is unchanged."""
    for size in SIZES:
        for channels in (1, 3):
            images, parameters = _images(8, channels, size), _drawn(family, size, 8)
            transformed = family.apply(images, parameters)
            same = transformed.shape == images.shape and transformed.dtype == images.dtype
            expect(same, f"apply made {described(transformed)} of {described(images)}, expected the same")
            low, high = float(transformed.min()), float(transformed.max())
            expect(-1e-6 <= low and high <= 1 + 1e-6, f"apply gave values from {low:.3g} to {high:.3g}, expected 0 to 1")
            expect(torch.equal(images, _images(8, channels, size)), "apply changed its input images")
            expect(torch.equal(transformed, family.apply(images, parameters)), "apply gave two results for the same parameters")
            alone = family.apply(images[:1], parameters[:1])
            expect(torch.allclose(alone, transformed[:1], atol=1.5 * LEVEL), "apply to an image depends on its batch")


def its_matrices_transform_the_images(family: TransformFamily) -> str | None:
    """`in_from_out` maps an output pixel to an input pixel; a photometric family has none."""
    if family.kind != "geometric":
        return "no matrix"
    for size in SIZES:
        images, parameters = _images(8, 1, size), _drawn(family, size, 8)
        matrices = family.in_from_out(parameters, size)
        expect_tensor("in_from_out", matrices, (8, 3, 3))
        inside = warp(torch.ones_like(images), matrices, fill=0.0) == 1
        off = (family.apply(images, parameters) - warp(images, matrices))[inside].abs()
        largest = float(off.max()) if off.numel() else 1.0
        expect(
            largest < 10 * LEVEL,
            f"apply and in_from_out transform images differently, by up to {largest:.2g} of the range: in_from_out maps an "
            "output pixel (x, y, 1) to an input pixel, pixel centres at i + 0.5",
        )
    return None


def its_classes_are_below_n_classes(family: TransformFamily) -> str:
    """(n,) int64 from 0, for a family with classes."""
    if family.n_classes is None:
        return "no classes"
    classes = family.classes(_drawn(family, SIZES[0]))
    expect_tensor("the tensor of classes", classes, (DRAWS,), torch.int64)
    low, high = int(classes.min()), int(classes.max())
    expect(0 <= low and high < family.n_classes, f"classes run from {low} to {high}, expected 0 to {family.n_classes - 1}")
    return f"{family.n_classes}"


CHECKS: Final = checks_of(TransformFamily, globals())
