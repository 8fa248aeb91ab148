"""Banks of homographies: drawn once, written as safetensors, read with every check."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from avtcli.config.components import Plugin
from avtcli.contracts import Size, TransformFamily
from avtcli.errors import AvtError
from avtcli.events import OnEvent, Saved
from avtcli.geometry.bank_family import BankFamily
from avtcli.geometry.family_building import build_family
from avtcli.geometry.homography import coefficients_from_matrix, is_proper, matrix_from_coefficients
from avtcli.seeding import keyed_generator
from avtcli.storage.files import METADATA_KEY, disk_errors_explained, from_metadata, refuse_existing, to_metadata, write_synced


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
    """Homographies that were drawn once.

    Attributes:
        coeffs: (N, 8) float32, in Pillow's order.
        mean: of the coefficients, (8,) float64.
        std: of the coefficients, (8,) float64.
    """

    coeffs: Tensor
    mean: Tensor
    std: Tensor

    def family(self, plugin: Plugin) -> TransformFamily:
        """A family that draws from the bank; targets that are coefficients are normalised by the bank's own figures."""
        options = plugin.options
        if options.get("target", "coefficients") == "coefficients":
            options = {"mean": self.mean.tolist(), "std": self.std.tolist(), **options}
        return BankFamily(build_family(Plugin.model_validate({"name": plugin.name, **options})), self.coeffs)


def sample_bank(plugin: Plugin, *, size: Size, count: int, seed: int) -> Bank:
    """Draw a bank.

    Raises:
        AvtError: for a family that is not made of homographies, or one that folds images.
    """
    family = build_family(plugin)
    parameters = family.sample(count, size, keyed_generator(seed, "bank"))
    if family.kind != "geometric" or parameters.shape[1] != 8:
        raise AvtError(f"A bank holds homographies of 8 coefficients each; '{plugin.name}' draws something else.")
    matrices = family.in_from_out(parameters, size)
    improper = int((~is_proper(matrices, size)).sum())
    if improper:
        raise AvtError(f"{improper} of {count} draws of '{plugin.name}' fold the image: choose a smaller transform.shift.")
    coefficients = coefficients_from_matrix(matrices)
    return Bank(coefficients.float(), coefficients.mean(0), coefficients.std(0))


def generate(out: Path, *, plugin: Plugin, size: int, count: int, seed: int, on_event: OnEvent) -> BankResult:
    """Write a bank file.

    Raises:
        AvtError: if the file exists, or the family is none of homographies.
    """
    from avtcli import __version__

    refuse_existing(out, flag="name")
    began = time.monotonic()
    bank = sample_bank(plugin, size=(size, size), count=count, seed=seed)
    about = {
        "family": plugin.name,
        "options": plugin.options,
        "size": size,
        "seed": seed,
        "count": count,
        "version": __version__,
    }
    blob = save({"coeffs": bank.coeffs, "mean": bank.mean, "std": bank.std}, metadata=to_metadata(about))
    with disk_errors_explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_synced(out, blob)
    on_event(Saved(out))
    return BankResult(str(out), count, size, bank.mean.tolist(), bank.std.tolist(), round(time.monotonic() - began, 2))


def load_bank(path: Path, *, plugin: Plugin, size: Size) -> TransformFamily:
    """Read a bank as a family that draws from it.

    Args:
        path: a file that `avt gen-homographies` wrote.
        plugin: the family that the run asks for.
        size: (height, width) of the run's images.

    Raises:
        AvtError: if it is no bank, of another family or size, or holds what is no homography.
    """
    tensors, about = _read(path)
    if about.get("family") != plugin.name:
        raise AvtError(f"{path} was made for the family '{about.get('family')}', this run asks for '{plugin.name}'.")
    if (about.get("size"), about.get("size")) != size:
        found = f"{about.get('size')}x{about.get('size')}"
        raise AvtError(
            f"{path} was made for images of {found} px, this run's are {size[1]}x{size[0]} px. "
            f"Make one with `avt gen-homographies --size {size[0]}`."
        )
    coefficients, mean, std = tensors["coeffs"], tensors["mean"], tensors["std"]
    if coefficients.ndim != 2 or coefficients.shape[1] != 8 or not len(coefficients) or mean.shape != (8,) or std.shape != (8,):
        raise AvtError(f"{path} has coeffs of shape {tuple(coefficients.shape)}, expected (N, 8) with mean and std (8,).")
    bad = int((~is_proper(matrix_from_coefficients(coefficients.double()), size)).sum())
    if bad or not (std > 0).all() or not mean.isfinite().all():
        raise AvtError(f"{path} holds {bad} rows that are not finite or fold the image, or statistics that are not numbers.")
    return Bank(coefficients, mean, std).family(plugin)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        blob = path.read_bytes()
        tensors = load(blob)
        about = from_metadata(blob)
        if about is None:
            raise KeyError(METADATA_KEY)
        shapes = {name: tensors[name] for name in ("coeffs", "mean", "std")}
    except OSError as error:
        raise AvtError(f"The bank {path} cannot be read: {error.strerror}. Make one with `avt gen-homographies`.") from error
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise AvtError(f"{path} is no bank of homographies ({error}). Make one with `avt gen-homographies`.") from error
    if not all(torch.is_floating_point(tensor) for tensor in shapes.values()):
        raise AvtError(f"{path} is no bank of homographies: its tensors are not of floating point.")
    return shapes, about
