"""How well a decoder tells the transformation of held-out images."""

import torch

from avtcli.contracts import ImageData, Size, TransformFamily
from avtcli.core.augment import to_float
from avtcli.core.keyed import keyed_generator
from avtcli.core.metrics import corner_error
from avtcli.core.model import AVTModel
from avtcli.runs.devices import to_device
from avtcli.runs.loaders import build_images, limited, plain_batches

MACE_COUNT = 1000
MACE_BATCH = 250


@torch.no_grad()
def held_out_mace(
    net: AVTModel, family: TransformFamily, data: ImageData, size: Size, *, shorter: int | None, workers: int, seed: int
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
    split = data.test if data.test is not None and len(data.test) else data.train
    numbers = limited(split, min(MACE_COUNT, len(split)))
    device = next(net.parameters()).device
    images = build_images(split, numbers, device=device, shorter=shorter, workers=workers)
    parameters = family.draw(len(images), size, keyed_generator(seed, "held out"))
    batches, errors = list(torch.split(torch.arange(len(images)), MACE_BATCH)), []
    for rows, batch in zip(batches, plain_batches(images, batches, size), strict=True):
        x = to_float(batch)
        y = family.apply(x, to_device(parameters[rows], device))
        mean, _ = net(net.normalise(x), net.normalise(y))
        decoded = family.in_from_out(family.decode(mean.cpu().double(), size), size)
        errors.append(corner_error(family.in_from_out(parameters[rows], size), decoded, size))
    return float(torch.cat(errors).mean())
