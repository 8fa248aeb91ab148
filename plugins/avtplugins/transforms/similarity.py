"""Similarities: AET's affine family without its shear, one of EnAET's four geometric families."""

from typing import Literal

from avtcli.geometry.geometric_family import Fill, GeometricFamily, Geometry
from avtplugins.transforms._affine import build_affine


def similarity(
    *,
    angle_deg: float = 180.0,
    scale_low: float = 0.7,
    scale_high: float = 1.3,
    shift: float = 0.2,
    target: Literal["parameters", "coefficients", "corners", "sl3"] = "parameters",
    fill: Fill = "grey",
    fill_value: float = 0.0,
    truncate: bool = True,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> GeometricFamily:
    """Similarities: turned, scaled and shifted; the target is five numbers.

    Args:
        angle_deg: the largest angle, in degrees; angles are uniform on both sides of 0.
        scale_low: the smallest scale.
        scale_high: the largest scale.
        shift: the largest shift, as a share of the side; shifts are whole pixels.
        target: its numbers (cos, sin, tx, ty, scale), Pillow's six coefficients, the displacements of the
            four corners, or (where the angle stays below 135 degrees) the Lie algebra.
        fill: what lies outside the image: grey level 128, a constant, the border's pixel, its reflection.
        fill_value: the constant, from 0 (black) to 1 (white).
        truncate: round the transformed image down to whole grey levels, as Pillow does.
        mean: of the target, one number each; computed for the image size where left out.
        std: of the target, one number each; computed for the image size where left out.
    """
    return build_affine(
        Geometry(target=target, fill=fill, fill_value=fill_value, truncate=truncate, mean=mean, std=std),
        names=("cos", "sin", "tx", "ty", "scale"),
        angle_deg=angle_deg,
        scale_low=scale_low,
        scale_high=scale_high,
        shift=shift,
    )
