"""BatchNorm statistics estimated from images, and random weights made ready to be compared with."""

import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from avtcli.contracts import Role, Size
from avtcli.data.images import Images
from avtcli.data.resident_images import EVAL_BATCH_SIZE, evaluation_batches
from avtcli.events import Progress
from avtcli.features.transformed_pairs import TransformedPairs, read_pairs
from avtcli.models.encoder import Encoder
from avtcli.models.siamese import SiameseModel, batch_norms
from avtcli.runtime.devices import Context
from avtcli.seeding import subset

STATISTICS_IMAGES: Final = 1000
"""Training images, without their labels, that statistics are estimated from; all where there are fewer."""
SILENT: Final = 0.01
"""A branch whose factors are all below this adds next to nothing: residual blocks start at 0, layer scales at 1e-6 to 1e-4."""
FACTOR: Final = re.compile(r"(weight|gain|gamma\w*|scale(_\d)?|ls\d?)$")
"""The last part of the name of a factor, in torch and timm; what is added is called bias, beta or token."""


@torch.no_grad()
def estimate_batch_statistics(encoder: Encoder, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every BatchNorm by the average of those of the batches, each of the same weight.

    BatchNorm alone is in training mode: nothing is dropped, and the code is its mean. The encoder is in eval mode afterwards.

    Args:
        encoder: any encoder; without BatchNorm no batch is read.
        batches: normalised images, (B, C, H, W), on its device.
    """
    norms = [norm for _, norm in batch_norms(encoder.eval())]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True  # cumulative average; not `train()`, which reaches modules within
    try:
        for x in batches if norms else ():
            encoder.encode(x, want=[encoder.log_var_name])
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum, norm.training = momentum, False


def calibrate(encoder: Encoder, images: Images, size: Size, *, task: str, context: Context) -> Encoder:
    """Estimate an encoder's BatchNorm statistics from a seeded draw of `STATISTICS_IMAGES`, cropped to (height, width).

    The encoder, on the context's device, is changed, and returned in eval mode.
    """
    rows = subset(len(images), STATISTICS_IMAGES, context.seed, "batch statistics")
    parts = torch.tensor_split(rows, math.ceil(len(rows) / EVAL_BATCH_SIZE))  # of nearly equal size, as each weighs the same

    def read() -> Iterable[Tensor]:
        done = 0
        for batch in evaluation_batches(images, parts, size):
            yield encoder.normalise(batch)
            done += len(batch)
            context.on_event(Progress(f"{task} BatchNorm statistics", done, len(rows), "images"))

    estimate_batch_statistics(encoder, read())
    return encoder


def calibrate_decoder(net: SiameseModel, pairs: TransformedPairs, *, context: Context) -> None:
    """Estimate a decoder's BatchNorm statistics from both views of a seeded draw of `STATISTICS_IMAGES` pairs.

    Originals and transformed images have their own where the network keeps them apart; else both are in one average.
    """
    rows = subset(len(pairs.rows), STATISTICS_IMAGES, context.seed, "batch statistics")
    drawn = replace(pairs, rows=pairs.rows[rows], parameters=pairs.parameters[rows])
    parts = torch.tensor_split(torch.arange(len(rows)), math.ceil(len(rows) / EVAL_BATCH_SIZE))

    def read(roles: Iterable[Role]) -> Iterator[Tensor]:
        for x, y in read_pairs(drawn, parts, task="decoder BatchNorm statistics", on_event=context.on_event):
            yield from (net.standardise(x if role == "original" else y) for role in roles)

    if net.transformed is None:
        estimate_batch_statistics(net.encoder, read(net.objective.views))
        return
    calibrate(net.encoder, pairs.images, pairs.size, task="decoder", context=context)
    with net.transformed.used():
        estimate_batch_statistics(net.encoder, read(["transformed"]))


def silent_scales(net: nn.Module) -> list[nn.Parameter]:
    """Return the scales of an untrained network that silence a layer: one factor a channel (or one in all), all below `SILENT`.

    In torch and timm these are the weights of normalisation layers (BatchNorm, LayerNorm, GroupNorm and their variants with an
    activation) that start at 0 at the end of a residual branch, as `zero_init_last` has it; the gains of normalisation-free
    convolutions and blocks (`gain`, `skipinit_gain`), which start at 0; and layer scales (`LayerScale.gamma`, `gamma`,
    `gamma_1`, `ls1`, `scale`), which start at 1e-6 to 1e-4. Such values help training to begin. Measured without training, they
    leave a network of its shortcuts, which see a corner of the image. The weight of a GRN (ConvNeXt V2), 0 at first too, is
    among them.
    """
    return [
        parameter
        for name, parameter in net.named_parameters()
        if FACTOR.search(name.rpartition(".")[2])
        and parameter.numel() == max(parameter.shape, default=1)
        and bool((parameter.detach().abs() < SILENT).all())
    ]


def prepare_baseline(random: Encoder, images: Images, size: Size, *, context: Context) -> Encoder:
    """Make random weights a fair baseline: `silent_scales` become 1, then BatchNorm is calibrated on training images.

    BatchNorm starts with mean 0 and variance 1, which no image has. For the arguments and the result see `calibrate`.
    """
    for scale in silent_scales(random):
        nn.init.ones_(scale)
    return calibrate(random, images, size, task="random", context=context)


def describe_statistics(net: nn.Module, images: Collection[int]) -> str | None:
    """Describe calibrated BatchNorm statistics, by the number of training images of each data set; none without BatchNorm."""
    counts = sorted({min(STATISTICS_IMAGES, count) for count in images})
    texts = [f"{count:,}".replace(",", " ") for count in counts]
    return f"BatchNorm statistics of {' and '.join(texts)} training images" if any(batch_norms(net)) else None


def describe_baseline(random: nn.Module, images: Collection[int]) -> str:
    """Describe what `prepare_baseline` makes of random weights, before it did."""
    scales = "layer scales that start near 0 set to 1" if silent_scales(random) else None
    return ", ".join(filter(None, ("random weights", describe_statistics(random, images), scales)))
