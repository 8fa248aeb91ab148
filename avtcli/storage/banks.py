"""Banks of homographies: sampled once, written as safetensors, validated when read."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save
from torch import Tensor

from avtcli.config.components import Plugin
from avtcli.contracts import Size, TransformFamily
from avtcli.errors import AvtError, shown
from avtcli.events import OnEvent, Saved
from avtcli.geometry.bank_family import BankFamily
from avtcli.geometry.family_building import build_family
from avtcli.geometry.geometric_family import WarpOptions
from avtcli.geometry.homography import coefficients_from_matrix, is_proper, matrix_from_coefficients
from avtcli.seeding import keyed_generator
from avtcli.storage.files import refuse_existing, to_metadata, write_file
from avtcli.storage.tensor_files import read_tensors

_ADVICE: Final = "Make one with `avt gen-homographies`."


@dataclass(frozen=True)
class BankResult:
    """What `avt gen-homographies` reports."""

    file: str
    count: int
    size: int
    mean: list[float]
    std: list[float]
    seconds: float


@dataclass(frozen=True)
class Bank:
    """Sampled homographies: coeffs (N, 8) float32 in Pillow's order, and their mean and std, (8,) float64."""

    coeffs: Tensor
    mean: Tensor
    std: Tensor

    def family(self, plugin: Plugin) -> TransformFamily:
        """Build a family that samples from the bank; coefficients as targets are normalised by the bank's statistics."""
        options = plugin.options
        if options.get("target") == "coefficients":
            options = {"mean": self.mean.tolist(), "std": self.std.tolist(), **options}
        return BankFamily(build_family(plugin.name, options), self.coeffs)


def sample_bank(plugin: Plugin, *, size: Size, count: int, seed: int) -> Bank:
    """Sample a bank.

    Raises:
        AvtError: for a family that does not consist of homographies, or one that folds images.
    """
    family = build_family(plugin.name, plugin.options)
    parameters = family.sample(count, size, keyed_generator(seed, "bank"))
    if family.kind != "geometric" or parameters.shape[1] != 8:
        raise AvtError(f"A bank holds homographies of 8 coefficients; '{plugin.name}' samples something else.")
    matrices = family.in_from_out(parameters, size)
    improper = int((~is_proper(matrices, size)).sum())
    if improper:
        raise AvtError(f"{improper} of {count} samples of '{plugin.name}' fold the image: choose a smaller transform.shift.")
    coefficients = coefficients_from_matrix(matrices)
    return Bank(coefficients.float(), coefficients.mean(0), coefficients.std(0))


def generate_bank(out: Path, *, plugin: Plugin, size: int, count: int, seed: int, on_event: OnEvent) -> BankResult:
    """Sample a bank and write it to a file.

    Raises:
        AvtError: if the file exists; and what `sample_bank` raises.
    """
    from avtcli import __version__

    refuse_existing(out, flag="name")
    began = time.monotonic()
    bank = sample_bank(plugin, size=(size, size), count=count, seed=seed)
    about = {"family": plugin.name, "options": plugin.options, "size": size, "seed": seed, "count": count}
    metadata = to_metadata({**about, "version": __version__})
    write_file(out, save({"coeffs": bank.coeffs, "mean": bank.mean, "std": bank.std}, metadata=metadata))
    on_event(Saved(out))
    return BankResult(str(out), count, size, bank.mean.tolist(), bank.std.tolist(), round(time.monotonic() - began, 2))


def load_bank(path: Path, *, plugin: Plugin, size: Size) -> TransformFamily:
    """Read a file of `avt gen-homographies` as a family that samples from it, for a run's family and size of images.

    Raises:
        AvtError: if the file is no bank, has another family, distribution or size, or contains invalid homographies.
    """
    tensors, about = _read(path)
    if about.get("family") != plugin.name:
        raise AvtError(f"{path} was made for the family {shown(about.get('family'))}, this run uses '{plugin.name}'.")
    made, own = (_sampling(options) for options in (about["options"], plugin.options))
    if made != own:
        keys = [key for key in {**made, **own} if made.get(key) != own.get(key)]
        there, here = (", ".join(f"{key}={shown(options.get(key))}" for key in keys) for options in (made, own))
        raise AvtError(
            f"{path} was made with {there}, this run uses {here}. Make one with the -o transform options of the run."
        )
    if (about.get("size"), about.get("size")) != size:
        found = f"{shown(about.get('size'))}x{shown(about.get('size'))}"
        raise AvtError(
            f"{path} was made for {found} px, this run uses {size[1]}x{size[0]} px. Make one with `avt gen-homographies "
            f"--size {size[0]}`."
        )
    coefficients, mean, std = tensors["coeffs"], tensors["mean"], tensors["std"]
    if coefficients.ndim != 2 or coefficients.shape[1] != 8 or not len(coefficients) or mean.shape != (8,) or std.shape != (8,):
        raise AvtError(f"{path} has coeffs of shape {tuple(coefficients.shape)}, expected (N, 8) with mean and std (8,).")
    bad = int((~is_proper(matrix_from_coefficients(coefficients), size)).sum())
    if bad or not (std > 0).all() or not (mean + std).isfinite().all():
        raise AvtError(f"{path} has {bad} rows that are not finite or fold the image, or invalid statistics.")
    return Bank(coefficients.float(), mean, std).family(plugin)


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a family that decide what it samples: all but those of images and targets."""
    shared = {field.name for field in fields(WarpOptions)}
    return {key: value for key, value in options.items() if key not in shared}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    file = read_tensors(path, hint=_ADVICE)
    missing = {"coeffs", "mean", "std"} - set(file.tensors)
    if missing:
        raise AvtError(f"{path} is no bank of homographies (no tensor {min(missing)}). {_ADVICE}")
    if file.about is None or not isinstance(file.about.get("options"), dict):
        raise AvtError(f"{path} is no bank of homographies (no metadata with the options of a family). {_ADVICE}")
    if not all(tensor.is_floating_point() for tensor in file.tensors.values()):
        raise AvtError(f"{path} is no bank of homographies: its tensors are not floating point. {_ADVICE}")
    return {name: tensor.double() for name, tensor in file.tensors.items()}, file.about
