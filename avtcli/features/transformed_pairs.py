"""Pairs of a held-out image and its transformed version, and a decoder's predictions for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avtcli.contracts import Size, TransformFamily
from avtcli.data.images import Images
from avtcli.data.resident_images import evaluation_batches
from avtcli.events import OnEvent, Progress
from avtcli.features.feature_reader import eval_batch_size
from avtcli.geometry.cropping import to_float
from avtcli.metrics.transformation_error import corner_error
from avtcli.models.siamese import SiameseModel
from avtcli.runtime.devices import to_device
from avtcli.seeding import keyed_generator


@dataclass(frozen=True)
class TransformedPairs:
    """Originals and the transformations of their second views.

    `rows` are the indices of the pairs' originals, (n,) int64; an image may occur several times. `parameters` are those of the
    transformations, (n, k) float64, on the CPU; `size` is (height, width) of the centre crop.
    """

    images: Images
    rows: Tensor
    family: TransformFamily
    parameters: Tensor
    size: Size

    @property
    def batches(self) -> list[Tensor]:
        """The rows of `parameters` in batches, (B,) int64 each."""
        return list(torch.split(torch.arange(len(self.rows)), eval_batch_size(self.images, self.size)))

    @property
    def target(self) -> Tensor:
        """The normalised targets, (n, dof), float64, on the CPU."""
        return self.family.target(self.parameters, self.size)


def sample_pairs(images: Images, family: TransformFamily, size: Size, *, key: tuple[int | str, ...]) -> TransformedPairs:
    """Pair each image with one transformation, drawn by the key."""
    count = len(images)
    return TransformedPairs(images, torch.arange(count), family, family.sample(count, size, keyed_generator(*key)), size)


def read_pairs(
    pairs: TransformedPairs, chunks: Sequence[Tensor] | None = None, *, task: str, on_event: OnEvent
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read a process's share of the batches, or all: originals and transformed images, (B, C, H, W) in [0, 1], on a device."""
    chunks = pairs.batches if chunks is None else chunks
    count, done = sum(map(len, chunks)), 0
    batches = evaluation_batches(pairs.images, [pairs.rows[chunk] for chunk in chunks], pairs.size)
    total = len(pairs.rows)
    on_event(Progress(task, 0, total, "pairs"))  # shown at once
    for chunk, batch in zip(chunks, batches, strict=True):
        x = to_float(batch)
        yield x, pairs.family.apply(x, to_device(pairs.parameters[chunk], x.device))
        done += len(chunk)
        on_event(Progress(task, done * total // count, total, "pairs"))  # the shares of all processes are alike


@torch.no_grad()
def predict(
    net: SiameseModel, pairs: TransformedPairs, *, task: str = "held-out pairs", on_event: OnEvent
) -> tuple[Tensor, Tensor | None]:
    """Decode pairs with a model in eval mode on the images' device.

    Returns:
        Mean and log-variance, (n, outputs) each, float64, on the CPU; no log-variance if the decoder has none.
    """
    means, log_vars = [], []
    for x, y in read_pairs(pairs, task=task, on_event=on_event):
        mean, log_var = net(net.standardise(x), net.standardise(y))
        means.append(mean)
        if log_var is not None:
            log_vars.append(log_var)
    return torch.cat(means).cpu().double(), torch.cat(log_vars).cpu().double() if log_vars else None


def corner_errors(pairs: TransformedPairs, predicted: Tensor) -> Tensor:
    """Compute each pair's corner error, (n,), in pixels, from predicted normalised targets, (n, dof), float64, on the CPU.

    The family has a matrix; see `transformation_error.corner_error`.
    """
    family, size = pairs.family, pairs.size
    decoded = family.in_from_out(family.decode(predicted, size), size)
    return corner_error(family.in_from_out(pairs.parameters, size), decoded, size)
