"""Rigid motions: AET's affine family without shear and scale, one of EnAET's four geometric families."""

from typing import Literal

from avtcli.geometry.geometric_family import Fill, GeometricFamily, Geometry
from avtplugins.transforms._affine import build_affine


def euclidean(
    *,
    angle_deg: float = 180.0,
    shift: float = 0.2,
    target: Literal["parameters", "coefficients", "corners", "sl3"] = "parameters",
    fill: Fill = "grey",
    fill_value: float = 0.0,
    truncate: bool = True,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> GeometricFamily:
    """Rigid motions: turned and shifted; the target is four numbers.

    Args:
        angle_deg: the largest angle, in degrees; angles are uniform on both sides of 0.
        shift: the largest shift, as a share of the side; shifts are whole pixels.
        target: its numbers (cos, sin, tx, ty), Pillow's six coefficients, the displacements of the
            four corners, or (where the angle stays below 135 degrees) the Lie algebra.
        fill: what lies outside the image: grey level 128, a constant, the border's pixel, its reflection.
        fill_value: the constant, from 0 (black) to 1 (white).
        truncate: round the transformed image down to whole grey levels, as Pillow does.
        mean: of the target, one number each; computed for the image size where left out.
        std: of the target, one number each; computed for the image size where left out.
    """
    return build_affine(
        Geometry(target=target, fill=fill, fill_value=fill_value, truncate=truncate, mean=mean, std=std),
        names=("cos", "sin", "tx", "ty"),
        angle_deg=angle_deg,
        shift=shift,
        algebra=(1, 2, 3, 5),
    )
