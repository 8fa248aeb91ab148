"""Held-out images, each beside itself transformed by a fresh transformation, and what a decoder says of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from avtcli.contracts import ImageData, Size, TransformFamily
from avtcli.data.held_out import MACE_COUNT, held_out_indices, held_out_split
from avtcli.data.images import Images
from avtcli.data.resident_images import EVAL_BATCH_SIZE, build_images, evaluation_batches
from avtcli.events import OnEvent, Progress, ignore
from avtcli.geometry.cropping import to_float
from avtcli.metrics.transformation_error import corner_error
from avtcli.models.siamese import SiameseModel
from avtcli.runtime.devices import to_device
from avtcli.seeding import keyed_generator


@dataclass(frozen=True)
class Pairs:
    """Images, each beside itself transformed.

    Attributes:
        images: where the originals are read.
        rows: which of them, (n,) int64; an image may come several times.
        family: whose transformations move them.
        parameters: of the transformations, (n, k) float64, on the CPU.
        size: (height, width) of the middle crop.
    """

    images: Images
    rows: Tensor
    family: TransformFamily
    parameters: Tensor
    size: Size


def sample_pairs(images: Images, family: TransformFamily, size: Size, *, key: tuple[int | str, ...]) -> Pairs:
    """Pair each image with itself under one transformation, drawn by the key."""
    return Pairs(images, torch.arange(len(images)), family, family.sample(len(images), size, keyed_generator(*key)), size)


def read_pairs(pairs: Pairs, *, task: str, on_event: OnEvent) -> Iterator[tuple[Tensor, Tensor]]:
    """Read pairs in their order, in batches of 250.

    Args:
        pairs: what to read.
        task: its name in the progress.
        on_event: told how far it is.

    Yields:
        The originals and the transformed images, float in [0, 1], (B, C, H, W) each, on the images' device.
    """
    count = len(pairs.rows)
    places = list(torch.split(torch.arange(count), EVAL_BATCH_SIZE))
    batches = evaluation_batches(pairs.images, [pairs.rows[place] for place in places], pairs.size)
    for place, batch in zip(places, batches, strict=True):
        x = to_float(batch)
        yield x, pairs.family.apply(x, to_device(pairs.parameters[place], x.device))
        on_event(Progress(task, int(place[-1]) + 1, count, "pairs"))


@torch.no_grad()
def predict(
    net: SiameseModel, pairs: Pairs, *, task: str = "held-out pairs", on_event: OnEvent = ignore
) -> tuple[Tensor, Tensor | None]:
    """What the decoder says of pairs.

    Args:
        net: in eval mode, on the images' device.
        pairs: what it sees.
        task: its name in the progress.
        on_event: told how far it is.

    Returns:
        Mean and log-variance, (n, outputs) each, float64, on the CPU; no log-variance where the decoder has none.
    """
    means, log_vars = [], []
    for x, y in read_pairs(pairs, task=task, on_event=on_event):
        mean, log_var = net(net.normalise(x), net.normalise(y))
        means.append(mean.cpu().double())
        if log_var is not None:
            log_vars.append(log_var.cpu().double())
    return torch.cat(means), torch.cat(log_vars) if log_vars else None


def corner_errors(pairs: Pairs, predicted: Tensor) -> Tensor:
    """The corner error of each pair's decoded transformation, (n,), pixels; see `core.metrics.corner_error`.

    Args:
        pairs: of a family with a matrix.
        predicted: normalised targets, (n, dof), float64, on the CPU.
    """
    family, size = pairs.family, pairs.size
    decoded = family.in_from_out(family.decode(predicted, size), size)
    return corner_error(family.in_from_out(pairs.parameters, size), decoded, size)


def held_out_mace(
    net: SiameseModel, family: TransformFamily, data: ImageData, size: Size, *, shorter: int | None, workers: int, seed: int
) -> float | None:
    """The mean average corner error in pixels on held-out images with fresh transformations; none for photometric families.

    The images are a draw of 1 000 from the test split, or from the training split where there is none.

    Args:
        net: in eval mode; it predicts the target, not a class.
        family: whose transformations are drawn.
        data: where the images are.
        size: (height, width) of the middle crop.
        shorter: the shorter side after resizing, or none.
        workers: processes that read images which do not fit in memory.
        seed: of the transformations.
    """
    if family.kind == "photometric":
        return None
    _, split = held_out_split(data)
    numbers = held_out_indices(data, MACE_COUNT)
    device = next(net.parameters()).device
    images = build_images(split, numbers, device=device, shorter=shorter, workers=workers)
    pairs = sample_pairs(images, family, size, key=(seed, "held out"))
    mean, _ = predict(net, pairs)
    return float(corner_errors(pairs, mean).mean())
