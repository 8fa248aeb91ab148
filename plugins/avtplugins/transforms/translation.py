"""Translations by whole pixels: AET's affine family with nothing but its shift."""

from typing import Literal

from avtcli.geometry.geometric_family import Fill, GeometricFamily, Geometry
from avtplugins.transforms._affine import build_affine


def translation(
    *,
    shift: float = 0.2,
    target: Literal["parameters", "coefficients", "corners", "sl3"] = "parameters",
    fill: Fill = "grey",
    fill_value: float = 0.0,
    truncate: bool = True,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> GeometricFamily:
    """Shifts by whole pixels; the target is two numbers.

    Args:
        shift: the largest shift, as a share of the side; shifts are whole pixels.
        target: its numbers (tx, ty), Pillow's two coefficients, the displacements of the four corners, or the Lie algebra.
        fill: what lies outside the image: grey level 128, a constant, the border's pixel, its reflection.
        fill_value: the constant, from 0 (black) to 1 (white).
        truncate: round the transformed image down to whole grey levels, as Pillow does.
        mean: of the target, one number each; computed for the image size where left out.
        std: of the target, one number each; computed for the image size where left out.
    """
    return build_affine(
        Geometry(target=target, fill=fill, fill_value=fill_value, truncate=truncate, mean=mean, std=std),
        names=("tx", "ty"),
        angle_deg=0.0,
        shift=shift,
        coefficients=(2, 5),
        algebra=(2, 5),
    )
