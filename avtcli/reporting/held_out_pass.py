"""One pass of a run's network over a small number of held-out images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from avtcli.contracts import Size
from avtcli.data.held_out import limited, partition
from avtcli.data.images import Images
from avtcli.evaluation.evaluation_setup import choose_transform, run_family, why_no_decoder
from avtcli.events import OnEvent, ignore
from avtcli.features.evaluation_target import EvaluationTarget, ImagePart, load_target, measure_usable, read_images
from avtcli.features.finite_check import FiniteCheck
from avtcli.features.pooling import SIDE, pool_features, read_codes
from avtcli.features.transformed_pairs import TransformedPairs, corner_errors, predict, read_pairs
from avtcli.geometry.cropping import to_float
from avtcli.geometry.homography import corners_of, map_points
from avtcli.models.encoder import Encoder
from avtcli.models.siamese import SiameseModel
from avtcli.models.weights import Weights, restore_encoder, restore_model
from avtcli.runtime.devices import Context
from avtcli.runtime.execution import prepare_for_inference
from avtcli.seeding import keyed_generator, subset

COUNT: Final = (60, 400)
"""Fewest and most images of a pass."""
PIXELS: Final = 10_000_000
"""Pixels of the images of a pass, within these limits: seconds on one CPU core."""
PAIRS: Final = 12


@dataclass(frozen=True)
class DecodedPairs:
    """Images, transformed truly and as decoded.

    `original`, `transformed` and `decoded` are (n, C, H, W) in [0, 1]. `true` and `predicted` are where the corners of the
    transformed image lie in the original, (n, 4, 2) as (x, y) in pixels; `errors`, (n,), are their mean distances, the corner
    error.
    """

    original: Tensor
    transformed: Tensor
    decoded: Tensor
    true: Tensor
    predicted: Tensor
    errors: Tensor


@dataclass(frozen=True)
class HeldOutPass:
    """Held-out images and what a network computes from them, on the CPU.

    Attributes:
        what: number, split and data set of the images.
        images: (n, C, H, W) in [0, 1].
        codes: the mean of the code, average-pooled to at most 4x4 and flattened, (n, d) float32.
        labels: (n,) int64, -1 for an image without one; none without labels.
        classes: names of the labels.
        pairs: transformed pairs of the first images, or why there are none.
        filters: weights of the first convolution, if it takes the image's channels and is larger than 1x1: (n, C, k, k).
    """

    what: str
    images: Tensor
    codes: Tensor
    labels: Tensor | None
    classes: list[str]
    pairs: DecodedPairs | str
    filters: Tensor | None


def read_held_out(run: Path, *, on_event: OnEvent) -> HeldOutPass:
    """Forward held-out images of the run's data set.

    Raises:
        AvtError: if weights or images are not there, or do not fit.
    """
    context = Context.build(on_event=on_event)
    target = load_target(run, context=context)
    prepared, size = target.prepared, target.prepared.size
    parts = partition(prepared.data)
    count = min(len(parts.held_out), max(COUNT[0], min(COUNT[1], PIXELS // (size[0] * size[1]))))
    chosen = ImagePart(parts.name, parts.split, limited(parts.held_out, count), prepared)
    return measure_usable([chosen], lambda usable: _read(target, usable[0], run.name, context), context=context)


@torch.no_grad()
def _read(target: EvaluationTarget, part: ImagePart, run: str, context: Context) -> HeldOutPass:
    source, prepared, size = target.source, target.prepared, target.prepared.size
    images = read_images(part.split, part.indices, prepared, context=context)
    no_decoder = why_no_decoder(source, choose_transform(source.config, {}), size)
    model = None if no_decoder else prepare_for_inference(restore_model(source), context.device)
    encoder = model.encoder if model else prepare_for_inference(restore_encoder(source), context.device)
    pixels, codes, check = [], [], FiniteCheck()
    for batch, code in read_codes(encoder, images, size, task=f"held-out images ({run})", on_event=context.on_event):
        check.count({encoder.backbone.code_tap: code})
        pixels.append(to_float(batch).cpu())
        codes.append(pool_features(code, "avg", SIDE).flatten(1).float())
    check.finish()
    labels = part.split.labels
    own = None if labels is None else labels[part.indices]
    names = prepared.data.classes or ([] if own is None else [str(label) for label in range(int(own.max()) + 1)])
    return HeldOutPass(
        what=f"{len(part.indices)} {part.name} images of {prepared.dataset.name}",
        images=torch.cat(pixels),
        codes=torch.cat(codes),
        labels=own,
        classes=list(names),
        pairs=_decode_pairs(model, source, images, size) if model else f"{no_decoder}",
        filters=_first_filters(encoder),
    )


def _decode_pairs(net: SiameseModel, source: Weights, images: Images, size: Size) -> DecodedPairs | str:
    """Decode some pairs, drawn by the data alone; or say why they have no decoded corners."""
    if net.objective.prediction is None:
        return "its objective has no decoder"
    if net.objective.prediction == "classes":
        return "its decoder predicts a class, not a transformation"
    family = run_family(source)
    if family.kind == "photometric":
        return "its transformations move no corners"
    rows = subset(len(images), min(PAIRS, len(images)), "report pairs")
    pairs = TransformedPairs(images, rows, family, family.sample(len(rows), size, keyed_generator("report pairs")), size)
    predicted, _ = predict(net, pairs, on_event=ignore)
    ((original, transformed),) = read_pairs(pairs, task="", on_event=ignore)
    parameters, corners = family.decode(predicted, size), corners_of(size)
    return DecodedPairs(
        original=original.cpu(),
        transformed=transformed.cpu(),
        decoded=family.apply(original.cpu(), parameters),
        true=map_points(family.in_from_out(pairs.parameters, size), corners),
        predicted=map_points(family.in_from_out(parameters, size), corners),
        errors=corner_errors(pairs, predicted),
    )


def _first_filters(encoder: Encoder) -> Tensor | None:
    first = next((module for module in encoder.backbone_model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.weight.shape[1] not in (1, 3) or max(first.weight.shape[2:]) == 1:
        return None
    return first.weight.detach().float().cpu()
