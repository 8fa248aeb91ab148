"""The affine family of AET, and its special cases: similarities, rigid motions and translations (EnAET's families)."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from avtcli.contracts import Size
from avtcli.errors import AvtError
from avtcli.geometry.distributions import TransformDistribution
from avtcli.geometry.geometric_family import geometric
from avtcli.geometry.homography import inverse, matrix_from_coefficients, unit_last_entry


@dataclass(frozen=True, kw_only=True)
class AffineDistribution(TransformDistribution):
    """Uniform affine maps; parameters are angle (degrees), tx, ty (pixels), scale and shear (degrees), (n, 5).

    Forward, output from input, about c = (W/2 + 0.5, H/2 + 0.5): T = translate * centre * RSS * inverse centre, with
    RSS = s [[cos a, -sin(a + h)], [sin a, cos(a + h)]], the matrix that torchvision 0.2 documents for its affine; the warp
    uses the inverse. Source: AET's cifar/affine/dataset.py.

    Values are AET's targets cos a, sin a, tx / (shift * W), ty / (shift * H), and scale and shear mapped from their ranges to
    [-1, 1], restricted to `names`.

    Raises:
        AvtError: for an invalid range.
    """

    names: tuple[str, ...]
    angle_deg: float = 0.0
    shear_deg: float = 0.0
    scale_low: float = 1.0
    scale_high: float = 1.0
    shift: float
    coefficients: tuple[int, ...] = (0, 1, 2, 3, 4, 5)

    def __post_init__(self) -> None:
        if not 0 <= self.angle_deg <= 180:
            raise AvtError(f"transform.angle_deg needs a largest angle from 0 to 180 degrees, found {self.angle_deg}.")
        if not 0 <= self.shear_deg <= 60:
            raise AvtError(f"transform.shear_deg needs a largest shear from 0 to 60 degrees, found {self.shear_deg}.")
        if not 0 < self.scale_low <= self.scale_high:
            found = f"{self.scale_low} and {self.scale_high}"
            raise AvtError(f"transform.scale_low and scale_high need 0 < low <= high, found {found}.")
        if not 0 <= self.shift <= 1:
            raise AvtError(f"transform.shift needs a fraction of the side from 0 to 1, found {self.shift}.")

    @property
    def units(self) -> tuple[str, ...]:
        """Units of the values, which are relative to the ranges."""
        units = {"tx": "largest shift", "ty": "largest shift", "scale": "half range", "shear": "half range"}
        return tuple(units.get(name, "") for name in self.names)

    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Sample uniformly within the ranges, translations rounded to integer pixels: (n, 5), float64."""
        mid, half = self._scale_range
        centre = torch.tensor([0, 0, 0, mid, 0], dtype=torch.float64)
        spread = torch.tensor([self.angle_deg, *self._largest_shift(size), half, self.shear_deg], dtype=torch.float64)
        uniform = 2 * torch.rand(n, 5, generator=generator, dtype=torch.float64) - 1
        sampled = centre + uniform * spread
        sampled[:, 1:3] = sampled[:, 1:3].round()
        return sampled

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
        """Exact for maps of the distribution; for others the nearest rotation, with constant parameters kept constant."""
        matrix = unit_last_entry(inverse(in_from_out))
        (p, r, _), (q, t, _) = matrix[:, 0].unbind(1), matrix[:, 1].unbind(1)
        x, y = size[1] / 2 + 0.5, size[0] / 2 + 0.5
        tx, ty = (row[:, 0] * x + row[:, 1] * y + row[:, 2] for row in (matrix[:, 0], matrix[:, 1]))
        zero = torch.zeros_like(p)
        # the columns are s (cos a, sin a) and s (-sin(a + h), cos(a + h)): their bisector gives a + h / 2
        shear = torch.atan2(-(p * r + q * t), p * t - q * r) if self.shear_deg else zero
        angle = torch.atan2(q - r, p + t) - shear / 2 if self.angle_deg else zero
        angle_deg = torch.remainder(angle.rad2deg() + 180, 360) - 180
        mid, half = self._scale_range
        scale = ((p * p + q * q + r * r + t * t) / 2).sqrt() if half else zero + mid
        return torch.stack([angle_deg, tx - x, ty - y, scale, shear.rad2deg()], 1)

    def values(self, parameters: Tensor, size: Size) -> Tensor:
        """AET's targets, those in `names`."""
        angle, (shift_x, shift_y) = parameters[:, 0].deg2rad(), self._largest_shift(size)
        mid, half = self._scale_range
        found = {
            "cos": angle.cos(),
            "sin": angle.sin(),
            "tx": _fraction(parameters[:, 1], shift_x),
            "ty": _fraction(parameters[:, 2], shift_y),
            "scale": _fraction(parameters[:, 3] - mid, half),
            "shear": _fraction(parameters[:, 4], self.shear_deg),
        }
        return torch.stack([found[name] for name in self.names], 1)

    def parameters_from_values(self, values: Tensor, size: Size) -> Tensor:
        """The angle of (cos, sin), the others scaled back."""
        given = dict(zip(self.names, values.unbind(1), strict=True))
        zero, (shift_x, shift_y) = torch.zeros_like(values[:, 0]), self._largest_shift(size)
        mid, half = self._scale_range
        angle = torch.atan2(given["sin"], given["cos"]) if "sin" in given else zero
        columns = [angle.rad2deg(), given["tx"] * shift_x, given["ty"] * shift_y]
        columns += [given.get("scale", zero) * half + mid, given.get("shear", zero) * self.shear_deg]
        return torch.stack(columns, 1)

    @property
    def _scale_range(self) -> tuple[float, float]:
        return (self.scale_low + self.scale_high) / 2, (self.scale_high - self.scale_low) / 2

    def _largest_shift(self, size: Size) -> tuple[float, float]:
        return self.shift * size[1], self.shift * size[0]


def _fraction(value: Tensor, largest: float) -> Tensor:
    """The value divided by the largest of its range; 0 where the range is empty."""
    return value / largest if largest else torch.zeros_like(value)


@geometric
def affine(
    *, angle_deg: float = 180.0, shear_deg: float = 30.0, scale_low: float = 0.7, scale_high: float = 1.3, shift: float = 0.2
) -> AffineDistribution:
    """AET's affine maps: rotation, shear, scale and shift; six values (cos, sin, tx, ty, scale, shear).

    Args:
        angle_deg: largest angle in degrees, from 0 to 180, in both directions.
        shear_deg: largest shear in degrees, from 0 to 60, in both directions.
        scale_low: smallest scale, above 0.
        scale_high: largest scale, at least the smallest.
        shift: largest shift, as a fraction of the side from 0 to 1; shifts are integer pixels.
    """
    return AffineDistribution(
        names=("cos", "sin", "tx", "ty", "scale", "shear"),
        angle_deg=angle_deg,
        shear_deg=shear_deg,
        scale_low=scale_low,
        scale_high=scale_high,
        shift=shift,
    )


@geometric
def similarity(
    *, angle_deg: float = 180.0, scale_low: float = 0.7, scale_high: float = 1.3, shift: float = 0.2
) -> AffineDistribution:
    """Similarities: rotation, scale and shift; five values (cos, sin, tx, ty, scale).

    Args:
        angle_deg: largest angle in degrees, from 0 to 180, in both directions.
        scale_low: smallest scale, above 0.
        scale_high: largest scale, at least the smallest.
        shift: largest shift, as a fraction of the side from 0 to 1; shifts are integer pixels.
    """
    names = ("cos", "sin", "tx", "ty", "scale")
    return AffineDistribution(names=names, angle_deg=angle_deg, scale_low=scale_low, scale_high=scale_high, shift=shift)


@geometric
def euclidean(*, angle_deg: float = 180.0, shift: float = 0.2) -> AffineDistribution:
    """Rigid motions: rotation and shift; four values (cos, sin, tx, ty).

    Args:
        angle_deg: largest angle in degrees, from 0 to 180, in both directions.
        shift: largest shift, as a fraction of the side from 0 to 1; shifts are integer pixels.
    """
    return AffineDistribution(names=("cos", "sin", "tx", "ty"), angle_deg=angle_deg, shift=shift)


@geometric
def translation(*, shift: float = 0.2) -> AffineDistribution:
    """Shifts by integer pixels; two values (tx, ty).

    Args:
        shift: largest shift, as a fraction of the side from 0 to 1.
    """
    return AffineDistribution(names=("tx", "ty"), shift=shift, coefficients=(2, 5))
