"""The affine distribution of AET, of which similarities, rigid motions and translations are narrower cases."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size
from avtcli.errors import AvtError
from avtcli.geometry.distributions import TransformDistribution
from avtcli.geometry.geometric_family import GeometricFamily, Geometry, check_geometry
from avtcli.geometry.homography import inverse, matrix_from_coefficients, unit_last_entry

ALL_UNITS = {
    "cos": "",
    "sin": "",
    "tx": "largest shift",
    "ty": "largest shift",
    "scale": "half range",
    "shear": "half range",
}


@dataclass(frozen=True, kw_only=True)
class AffineDistribution(TransformDistribution):
    """Parameters are angle (degrees), tx, ty (pixels), scale and shear (degrees), in (n, 5); what is fixed is drawn fixed.

    Forward, output from input, about c = (W/2 + 0.5, H/2 + 0.5): T = translate * centre * RSS * inverse centre, with
    RSS = s [[cos a, -sin(a + h)], [sin a, cos(a + h)]], the matrix that torchvision 0.2 documents for its affine; the warp
    takes the inverse. Weights: AET's cifar/affine/dataset.py.

    Its own numbers are AET's targets: cos a, sin a, tx / (share * W), ty / (share * H), scale and shear mapped to [-1, 1]
    over their ranges, of which `names` are stated.
    """

    names: tuple[str, ...]
    angle_deg: float
    shear_deg: float
    scale_low: float
    scale_high: float
    shift: float
    coefficients: tuple[int, ...]
    algebra: tuple[int, ...]
    is_affine = True

    @property
    def units(self) -> tuple[str, ...]:
        """One a number: AET's targets are shares of what the distribution reaches."""
        return tuple(ALL_UNITS[name] for name in self.names)

    @property
    def max_turn_deg(self) -> float:
        """The angle, and half of the shear, which turns one axis only."""
        return self.angle_deg + self.shear_deg / 2

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Uniform within the ranges, translations rounded to whole pixels: (n, 5), float64."""
        height, width = size
        mid, half = self._scale_range
        centre = torch.tensor([0, 0, 0, mid, 0], dtype=torch.float64)
        spread = [self.angle_deg, self.shift * width, self.shift * height, half, self.shear_deg]
        uniform = 2 * torch.rand(n, 5, generator=generator, dtype=torch.float64) - 1
        drawn = centre + uniform * torch.tensor(spread, dtype=torch.float64)
        drawn[:, 1:3] = drawn[:, 1:3].round()
        return drawn

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """Undo the translation, then RSS about the centre: x = RSS^-1 (x' - c - t) + c."""
        angle, shear = parameters[:, 0].deg2rad(), parameters[:, 4].deg2rad()
        cos, sin, scale = angle.cos(), angle.sin(), parameters[:, 3] * shear.cos()
        a, b = (angle + shear).cos() / scale, (angle + shear).sin() / scale
        d, e = -sin / scale, cos / scale
        x, y = size[1] / 2 + 0.5, size[0] / 2 + 0.5
        out_x, out_y = x + parameters[:, 1], y + parameters[:, 2]
        zero = torch.zeros_like(a)
        rows = [a, b, x - a * out_x - b * out_y, d, e, y - d * out_x - e * out_y, zero, zero]
        return matrix_from_coefficients(torch.stack(rows, 1))

    def parameters_from_matrix(self, in_from_out: Tensor, size: Size) -> Tensor:
        """Exact for the distribution's maps; for others the turn nearest to theirs, and what the distribution fixes stays fixed."""
        matrix = unit_last_entry(inverse(in_from_out))
        (p, r, _), (q, t, _) = matrix[:, 0].unbind(1), matrix[:, 1].unbind(1)
        x, y = size[1] / 2 + 0.5, size[0] / 2 + 0.5
        tx, ty = (row[:, 0] * x + row[:, 1] * y + row[:, 2] for row in (matrix[:, 0], matrix[:, 1]))
        zero = torch.zeros_like(p)
        # the columns are s (cos a, sin a) and s (-sin(a + h), cos(a + h)): their bisector stands at a + h / 2
        shear = torch.atan2(-(p * r + q * t), p * t - q * r) if self.shear_deg else zero
        angle = torch.atan2(q - r, p + t) - shear / 2 if self.angle_deg else zero
        angle_deg = torch.remainder(angle.rad2deg() + 180, 360) - 180
        mid, half = self._scale_range
        scale = ((p * p + q * q + r * r + t * t) / 2).sqrt() if half else zero + mid
        return torch.stack([angle_deg, tx - x, ty - y, scale, shear.rad2deg()], 1)

    def values(self, parameters: Tensor, size: Size) -> Tensor:
        """AET's targets, those that `names` state."""
        angle, shift = parameters[:, 0].deg2rad(), self._largest_shift(size)
        mid, half = self._scale_range
        found = {
            "cos": angle.cos(),
            "sin": angle.sin(),
            "tx": _share(parameters[:, 1], shift[0]),
            "ty": _share(parameters[:, 2], shift[1]),
            "scale": _share(parameters[:, 3] - mid, half),
            "shear": _share(parameters[:, 4], self.shear_deg),
        }
        return torch.stack([found[name] for name in self.names], 1)

    def parameters_from_values(self, numbers: Tensor, size: Size) -> Tensor:
        """The angle of (cos, sin), the others scaled back."""
        given = dict(zip(self.names, numbers.unbind(1), strict=True))
        zero, shift = torch.zeros_like(numbers[:, 0]), self._largest_shift(size)
        mid, half = self._scale_range
        angle = torch.atan2(given["sin"], given["cos"]) if "sin" in given else zero
        columns = [angle.rad2deg(), given["tx"] * shift[0], given["ty"] * shift[1]]
        columns += [given.get("scale", zero) * half + mid, given.get("shear", zero) * self.shear_deg]
        return torch.stack(columns, 1)

    @property
    def _scale_range(self) -> tuple[float, float]:
        return (self.scale_low + self.scale_high) / 2, (self.scale_high - self.scale_low) / 2

    def _largest_shift(self, size: Size) -> tuple[float, float]:
        return self.shift * size[1], self.shift * size[0]


def _share(value: Tensor, largest: float) -> Tensor:
    """The value over the largest that the distribution reaches; 0 where that is 0."""
    return value / largest if largest else torch.zeros_like(value)


def build_affine(
    geometry: Geometry,
    *,
    names: Sequence[str],
    angle_deg: float,
    shear_deg: float = 0.0,
    scale_low: float = 1.0,
    scale_high: float = 1.0,
    shift: float,
    coefficients: Sequence[int] = (0, 1, 2, 3, 4, 5),
    algebra: Sequence[int] = (0, 1, 2, 3, 4, 5),
) -> GeometricFamily:
    """Make a family of a narrowed affine distribution.

    Raises:
        AvtError: for a range that the distribution cannot have, or shared options that do not fit.
    """
    if not 0 <= angle_deg <= 180:
        raise AvtError(f"transform.angle_deg needs a largest angle from 0 to 180 degrees, found {angle_deg}.")
    if not 0 <= shear_deg <= 60:
        raise AvtError(f"transform.shear_deg needs a largest shear from 0 to 60 degrees, found {shear_deg}.")
    if not 0 < scale_low <= scale_high:
        raise AvtError(f"transform.scale_low and scale_high need 0 < low <= high, found {scale_low} and {scale_high}.")
    if not 0 <= shift <= 1:
        raise AvtError(f"transform.shift needs a share of the side from 0 to 1, found {shift}.")
    distribution = AffineDistribution(
        names=tuple(names),
        angle_deg=angle_deg,
        shear_deg=shear_deg,
        scale_low=scale_low,
        scale_high=scale_high,
        shift=shift,
        coefficients=tuple(coefficients),
        algebra=tuple(algebra),
    )
    check_geometry(distribution, geometry, turn_advice="a smaller transform.angle_deg")
    return GeometricFamily(distribution, geometry)
