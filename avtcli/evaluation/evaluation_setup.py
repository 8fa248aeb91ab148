"""The setup of an evaluation: request, encoder, layer, images and pairs, checked before any computation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field
from torch import Tensor

from avtcli.config.components import Frozen, Plugin
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import merge, resolve_plugin, validate
from avtcli.contracts import Size, TransformFamily
from avtcli.data.held_out import HELD_OUT_COUNT, Partition, limited, partition
from avtcli.errors import AvtError
from avtcli.evaluation.equivariance import BANK, ImageClasses
from avtcli.features.evaluation_target import EvaluationTarget, PreparedImages, read_images
from avtcli.features.feature_reader import tap_shapes
from avtcli.features.transformed_pairs import TransformedPairs, sample_pairs
from avtcli.geometry.bank_family import BankFamily
from avtcli.geometry.family_building import build_family
from avtcli.models.encoder import Encoder
from avtcli.models.initial_weights import report_uninitialised
from avtcli.models.model_building import build_encoder
from avtcli.models.weights import Weights, restore_encoder
from avtcli.runtime.devices import Context
from avtcli.seeding import keyed_generator, subset
from avtcli.training.training_setup import build_transform

FIT_PAIRS: Final = 4
"""Pairs to fit the ridge on, for each held-out pair that is asked for, even where fewer are held out."""


class EvaluationRequest(Frozen):
    """What to evaluate."""

    transform: dict[str, Any] = Field(default_factory=dict)
    """Name and options of a family, over the run's; empty for the run's own."""
    layers: tuple[str, ...] = ()
    """Layers that the ridge reads; empty for the code, `("all",)` for all."""
    count: int | None = Field(default=None, ge=2)
    """Held-out images; none means 1 000, or all of fewer."""
    calibrate_bn: bool = False
    """Whether BatchNorm statistics are estimated from training images before measuring."""


@dataclass(frozen=True)
class EvaluationImages:
    """The parts of a data set, indices of held-out images to measure on, and of training images to fit the ridge on."""

    parts: Partition
    held_out: Tensor
    fit: Tensor


@dataclass(frozen=True)
class EvaluationSetup:
    """A checked evaluation, with its encoder and a random one in eval mode on the CPU, and the layers that the ridge reads.

    Attributes:
        family: the distribution of the transformations; never a bank.
        calibrate_bn: see `EvaluationRequest`.
        no_decoder: why the run's decoder is not evaluated; none if it is.
        versions: for retrieval, `BANK` pairs each of some images, grouped by image.
        fit: pairs to fit the ridge on.
    """

    transform: Plugin
    family: TransformFamily
    calibrate_bn: bool
    no_decoder: str | None
    encoder: Encoder
    random: Encoder
    layers: tuple[str, ...]
    images: EvaluationImages
    held_out: TransformedPairs
    versions: TransformedPairs
    fit: TransformedPairs


def build_evaluation_setup(
    target: EvaluationTarget, request: EvaluationRequest, chosen: EvaluationImages, *, context: Context
) -> EvaluationSetup:
    """Check a request and draw the pairs of the chosen images.

    Raises:
        AvtError: for an unknown layer or family, or more images than the split has.
    """
    source, prepared, size, seed = target.source, target.prepared, target.prepared.size, context.seed
    encoder = restore_encoder(source)
    layers = encoder.layers if request.layers == ("all",) else request.layers or (encoder.backbone.code_tap,)
    tap_shapes(encoder, layers, size)  # refuses layers and sizes before any image is read
    report_uninitialised(source, encoder, layers, size, on_event=context.on_event)
    transform = choose_transform(source.config, request.transform)
    no_decoder = why_no_decoder(source, transform, size)
    family = run_family(source) if no_decoder is None else build_family(transform.name, transform.options)
    images = read_images(chosen.parts.split, chosen.held_out, prepared, context=context)
    to_fit = read_images(prepared.data.train, chosen.fit, prepared, context=context)
    rows = subset(len(images), -(-len(images) // BANK), seed, "retrieval images").repeat_interleave(BANK)
    parameters = family.sample(len(rows), size, keyed_generator(seed, "retrieval"))
    return EvaluationSetup(
        transform=transform,
        family=family,
        calibrate_bn=request.calibrate_bn,
        no_decoder=no_decoder,
        encoder=encoder,
        random=build_encoder(source.spec, seed=seed).eval(),
        layers=tuple(dict.fromkeys(layers)),
        images=chosen,
        held_out=sample_pairs(images, family, size, key=(seed, "held out")),
        versions=TransformedPairs(images, rows, family, parameters, size),
        fit=sample_pairs(to_fit, family, size, key=(seed, "ridge")),
    )


def choose_transform(config: PretrainConfig | None, given: Mapping[str, Any]) -> Plugin:
    """Overlay a run's family, or the default one, with name and options."""
    own = PretrainConfig.model_fields["transform"].default if config is None else config.transform
    merged = merge({"transform": own.model_dump()}, {"transform": given})["transform"]
    return resolve_plugin("transform", validate(Plugin, merged, where="--transform"))


def why_no_decoder(source: Weights, transform: Plugin, size: Size) -> str | None:
    """State why the decoder cannot be evaluated on a family and images of a size; none if it can."""
    config = source.config
    if source.run is None or config is None or source.spec.objective is None:
        return f"{source.path} holds an encoder only"
    own = config.transform
    if describe_plugin(own) != describe_plugin(transform):
        keys = [key for key, value in transform.options.items() if own.name == transform.name and own.options.get(key) != value]
        both = ({"name": part.name} | {key: part.options.get(key) for key in keys} for part in (own, transform))
        trained, found = (describe_plugin(Plugin.model_validate(part)) for part in both)
        return f"the decoder of {source.path} was trained on {trained}, not on {found}"
    if size != source.spec.size:
        trained, found = (f"{width}x{height}" for height, width in (source.spec.size, size))
        return f"the decoder of {source.path} was trained on images of {trained} px, these are {found} px"
    return None


def describe_plugin(plugin: Plugin) -> str:
    """Format a plugin as `NAME (KEY=VALUE, ...)`; text and the number that it spells are equal."""
    options = ", ".join(f"{key}={value}" for key, value in plugin.options.items())
    return f"{plugin.name} ({options})" if options else plugin.name


def choose_images(prepared: PreparedImages, count: int | None) -> EvaluationImages:
    """Choose held-out images, and the training images for the ridge; see `FIT_PAIRS`."""
    parts = partition(prepared.data)
    if count is not None and count > len(parts.held_out):
        found = f"the {len(parts.held_out)} of the {parts.name} split of '{prepared.dataset.name}'"
        raise AvtError(f"--count {count} asks for more images than {found}. Give at most {len(parts.held_out)}.")
    asked = count or HELD_OUT_COUNT
    held_out = limited(parts.held_out, min(asked, len(parts.held_out)))
    return EvaluationImages(parts, held_out, limited(parts.train, min(FIT_PAIRS * asked, len(parts.train))))


def image_classes(prepared: PreparedImages, images: EvaluationImages) -> ImageClasses | None:
    """The classes of the held-out images, with numbers for names where the data set has none; none without labels."""
    labels, names = images.parts.split.labels, prepared.data.classes
    if labels is None:
        return None
    own = labels[images.held_out]
    return ImageClasses(own, names or [str(label) for label in range(int(own.max()) + 1)])


def run_family(source: Weights) -> TransformFamily:
    """The run's family with its statistics; for a bank, the distribution that it was drawn from."""
    assert source.config is not None
    distribution = build_transform(source.config, source.spec.size)
    return distribution.family if isinstance(distribution, BankFamily) else distribution
