"""Features of frozen encoders, read once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from avtcli.contracts import Size
from avtcli.core.encoder import Encoder
from avtcli.core.heads import pool_features
from avtcli.core.keyed import keyed_generator
from avtcli.runs.events import OnEvent, Progress
from avtcli.runs.images import Images
from avtcli.runs.loaders import plain_batches

BATCH = 250


@dataclass(frozen=True)
class Feature:
    """What to read of an image: a tap, reduced."""

    layer: str
    pool: str
    pool_size: int


@torch.no_grad()
def extract(
    encoder: Encoder,
    images: Images,
    wanted: list[Feature],
    *,
    size: Size,
    samples: int,
    seed: int,
    task: str,
    on_event: OnEvent,
) -> dict[Feature, Tensor]:
    """Read features of all images in one pass, without augmentation.

    Args:
        encoder: in eval mode, on the images' device.
        images: the images.
        wanted: what to read.
        size: (height, width) of the middle crop.
        samples: how many samples of the code are averaged, at the code tap and, through it, after it; 0 takes its mean.
        seed: of the samples.
        task: its name in the progress.
        on_event: told how far it is.

    Returns:
        Each wanted feature of all images, (n, C, side, side) or (n, C), float32, on the CPU.
    """
    layers = list(dict.fromkeys(feature.layer for feature in wanted))
    out: dict[Feature, Tensor] = {}
    batches = list(torch.split(torch.arange(len(images)), BATCH))
    for rows, batch in zip(batches, plain_batches(images, batches, size), strict=True):
        x = encoder.normalise(batch)
        taps = sampled_features(encoder, x, layers, samples=samples, seed=seed, batch=int(rows[0]))
        for feature in wanted:
            tap = taps[feature.layer]
            side = feature.pool_size if tap.ndim == 2 else min(feature.pool_size, *tap.shape[2:])
            pooled = pool_features(tap, feature.pool, side).float().cpu()
            if feature not in out:
                out[feature] = pooled.new_empty(len(images), *pooled.shape[1:])
            out[feature][rows] = pooled
        on_event(Progress(task, int(rows[-1]) + 1, len(images), "images"))
    return out


def sampled_features(
    encoder: Encoder, x: Tensor, layers: list[str], *, samples: int, seed: int, batch: int
) -> dict[str, Tensor]:
    """The taps of a batch; with samples, the code tap is the mean of so many samples of the code, later taps see one each.

    Args:
        encoder: in eval mode.
        x: normalised images, (B, C, H, W).
        layers: names of taps.
        samples: 0 for the mean of the code.
        seed: of the noise.
        batch: the number of the batch, part of the noise's key.
    """
    if not samples or encoder.log_var is None:
        return encoder.features(x, layers)
    code = encoder.backbone.code_tap
    log_var_name = f"{code}.log_var"
    read = list(dict.fromkeys([*layers, code, log_var_name]))
    total: dict[str, Tensor] = {}
    generator = keyed_generator(seed, "samples", batch, device=x.device)
    shape = encoder.code_shape(x.shape[1], (x.shape[2], x.shape[3]))
    for _ in range(samples):
        noise = torch.randn(len(x), *shape, generator=generator, device=x.device)
        taps = encoder.features(x, read, noise)
        taps[code] = taps[code] + encoder.noise_scale * (0.5 * taps[log_var_name]).exp() * noise
        for name in layers:
            total[name] = taps[name] if name not in total else total[name] + taps[name]
    return {name: tap / samples for name, tap in total.items()}
