"""What a family of transformations checks: its draws, its target and the inverse, its images and its matrices."""

from typing import Final

import torch
from torch import Tensor

from avtcli.contracts import TransformFamily
from avtcli.geometry.warp import warp
from avtcli.plugin_kit.checking import described, expect
from avtcli.seeding import keyed_generator

SIZES: Final = ((32, 32), (32, 48))
"""(height, width): a square, and one that is not."""
DRAWS: Final = 64
STATISTICS_DRAWS: Final = 20_000
STATISTICS_TOLERANCE: Final = 0.1
"""How far the mean may be from 0 and the deviation from 1; a sample of STATISTICS_DRAWS strays by less than a fifth of it."""
LEVEL: Final = 1 / 255


def _drawn(family: TransformFamily, size: tuple[int, int], n: int = DRAWS) -> Tensor:
    return family.sample(n, size, keyed_generator("conformance draw"))


def _images(n: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Smooth images in [0, 1], so that another way to interpolate changes little: (n, C, H, W)."""
    coarse = torch.rand(n, channels, 4, 4, generator=keyed_generator("conformance images"))
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False)


def the_numbers_of_a_target_have_names_and_units(family: TransformFamily) -> str:
    """`kind`, `names` and `units` are set, one of each a number."""
    expect(family.kind in ("geometric", "photometric", "mixed"), f"kind is {family.kind!r}, expected geometric or photometric")
    expect(0 < family.dof == len(set(family.names)), f"names needs one for each number of the target, found {family.names}")
    expect(len(family.units) == family.dof, f"{family.dof} names have {len(family.units)} units, expected one each")
    return ", ".join(family.names)


def one_seed_gives_one_draw(family: TransformFamily) -> str:
    """Parameters are (n, k), float64 and finite, a function of the generator that is given, and of no other."""
    for size in SIZES:
        before = torch.get_rng_state()
        first, second = _drawn(family, size), _drawn(family, size)
        expect(
            torch.equal(before, torch.get_rng_state()), "sample used torch's own generator, expected the one that it is given"
        )
        expect(torch.equal(first, second), "one seed gave two draws: use the generator that sample is given, and no other")
        expect(
            first.ndim == 2 and len(first) == DRAWS and first.dtype == torch.float64 and bool(first.isfinite().all()),
            f"sample({DRAWS}) gave {described(first)}, expected ({DRAWS}, k) float64",
        )
        expect(first.device.type == "cpu", f"sample gave parameters on {first.device}, expected the CPU")
    return f"k = {first.shape[1]}"


def targets_have_the_statistics_that_it_states(family: TransformFamily) -> str:
    """Under its own distribution a target has about mean 0 and deviation 1; a number that is constant may have deviation 0."""
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
        for number, name in enumerate(family.names):
            expect(
                max(float(o[number]) for o in off) < STATISTICS_TOLERANCE,
                f"over {STATISTICS_DRAWS} draws at {size[0]}x{size[1]} px the target {name} has mean {mean[number]:.3g} and deviation "
                f"{std[number]:.3g}, expected about 0 and 1: mend statistics",
            )
        worst = [max(w, float(o.max())) for w, o in zip(worst, off, strict=True)]
    return f"mean within {worst[0]:.2g} of 0, deviation within {worst[1]:.2g} of 1"


def decoding_is_the_inverse(family: TransformFamily) -> str:
    """Target, decoded, gives the same target again, and the same warp."""
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
    """Whatever a decoder says, in float32."""
    for size in SIZES:
        target = family.target(_drawn(family, size), size).float()
        said = (target + 0.1 * torch.randn(target.shape, generator=keyed_generator("decoder"))).requires_grad_()
        family.decode(said, size).sum().backward()  # type: ignore[no-untyped-call]
        expect(
            said.grad is not None and bool(said.grad.isfinite().all()), "decode has a gradient that is none, NaN or infinite"
        )
    return ""


def images_keep_their_shape_and_range(family: TransformFamily) -> str:
    """Float images of one or three channels in [0, 1] stay such; the same parameters do the same; the input is left alone."""
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
            expect(torch.equal(images, _images(8, channels, size)), "apply changed the images that it was given")
            expect(torch.equal(transformed, family.apply(images, parameters)), "apply gave two results for the same parameters")
            alone = family.apply(images[:1], parameters[:1])
            expect(torch.allclose(alone, transformed[:1], atol=1.5 * LEVEL), "what apply does to an image depends on its batch")
    return ""


def its_matrices_are_what_moves_the_images(family: TransformFamily) -> str:
    """`in_from_out` takes an output pixel to an input pixel; a photometric family has none."""
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
            f"apply moves images otherwise than in_from_out says, by up to {float(off.max()) if off.numel() else 1:.2g} of the "
            "range: it maps an output pixel (x, y, 1) to an input pixel, pixel centres at i + 0.5",
        )
    return ""


def its_classes_are_numbers_below_n_classes(family: TransformFamily) -> str:
    """Where it has classes: (n,) int64 from 0."""
    if family.n_classes is None:
        return "no classes"
    classes = family.classes(_drawn(family, SIZES[0]))
    expect(classes.shape == (DRAWS,) and classes.dtype == torch.int64, f"classes gave {described(classes)}")
    low, high = int(classes.min()), int(classes.max())
    expect(0 <= low and high < family.n_classes, f"classes run from {low} to {high}, expected 0 to {family.n_classes - 1}")
    return f"{family.n_classes}"


CHECKS: Final = (
    the_numbers_of_a_target_have_names_and_units,
    one_seed_gives_one_draw,
    targets_have_the_statistics_that_it_states,
    decoding_is_the_inverse,
    decoding_has_finite_gradients,
    images_keep_their_shape_and_range,
    its_matrices_are_what_moves_the_images,
    its_classes_are_numbers_below_n_classes,
)
