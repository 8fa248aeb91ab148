"""The setup of an evaluation: request, encoder, layer, images and pairs, checked before any computation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from avtcli.config.components import Plugin
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import merge, resolve_plugin, validate
from avtcli.contracts import Size, Split, TransformFamily
from avtcli.data.held_out import held_out_indices, held_out_split
from avtcli.data.images import Images
from avtcli.errors import AvtError
from avtcli.evaluation.equivariance import BANK
from avtcli.features.evaluation_target import EvaluationTarget, PreparedImages, read_images
from avtcli.features.feature_reader import tap_shapes
from avtcli.features.transformed_pairs import TransformedPairs, sample_pairs
from avtcli.geometry.bank_family import BankFamily
from avtcli.geometry.family_building import build_family
from avtcli.models.encoder import Encoder
from avtcli.models.weights import Weights, restore_encoder
from avtcli.runtime.context import Context
from avtcli.seeding import keyed_generator, subset
from avtcli.training.training_setup import build_transform

COUNT: Final = 1000
FIT_PAIRS: Final = 4
"""TransformedPairs to fit the ridge on, for each held-out pair."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate.

    Attributes:
        transform: name and options of a family, over the run's; empty for the run's own.
        layer: the layer that the ridge reads; none means the code.
        count: held-out images; none means 1 000, or all of fewer.
    """

    transform: Mapping[str, Any] = field(default_factory=dict)
    layer: str | None = None
    count: int | None = None


@dataclass(frozen=True)
class EvaluationImages:
    """The images of an evaluation.

    Attributes:
        name: of the held-out split, test or train.
        split: the held-out split.
        held_out: indices into it, (n,) int64.
        fit: indices into the train split, disjoint from the held-out images, to fit the ridge on.
    """

    name: str
    split: Split
    held_out: Tensor
    fit: Tensor


@dataclass(frozen=True)
class EvaluationSetup:
    """A checked evaluation.

    Attributes:
        transform: name and options of the family.
        family: the distribution of the transformations; never a bank.
        no_decoder: why the run's decoder is not evaluated; none if it is.
        encoder: with its weights, in eval mode, on the CPU.
        layer: the layer that the ridge reads.
        images: indices of the images.
        held_out: one pair an image.
        versions: for retrieval, `BANK` pairs each of some images, grouped by image.
        fit: pairs to fit the ridge on.
    """

    transform: Plugin
    family: TransformFamily
    no_decoder: str | None
    encoder: Encoder
    layer: str
    images: EvaluationImages
    held_out: TransformedPairs
    versions: TransformedPairs
    fit: TransformedPairs


def build_evaluation_setup(target: EvaluationTarget, request: EvaluationRequest, *, context: Context) -> EvaluationSetup:
    """Check a request and draw the pairs.

    Raises:
        AvtError: for an unknown layer or family, or more images than the split has.
    """
    source, prepared, seed = target.source, target.prepared, context.seed
    encoder = restore_encoder(source)
    layer = request.layer or encoder.backbone.code_tap
    tap_shapes(encoder, [layer], prepared.size)  # refuses layers and sizes before any image is read
    transform = choose_transform(source.config, request.transform)
    no_decoder = why_no_decoder(source, transform, prepared.size)
    family = _run_family(source) if no_decoder is None else build_family(transform.name, transform.options)
    chosen = choose_images(prepared, request.count)
    images = read_images(chosen.split, chosen.held_out, prepared, context=context)
    to_fit = read_images(prepared.data.train, chosen.fit, prepared, context=context)
    return EvaluationSetup(
        transform=transform,
        family=family,
        no_decoder=no_decoder,
        encoder=encoder,
        layer=layer,
        images=chosen,
        held_out=sample_pairs(images, family, prepared.size, key=(seed, "held out")),
        versions=_versions(images, family, prepared.size, seed),
        fit=sample_pairs(to_fit, family, prepared.size, key=(seed, "ridge")),
    )


def choose_transform(config: PretrainConfig | None, given: Mapping[str, Any]) -> Plugin:
    """Overlay a run's family, or the default one, with name and options.

    Raises:
        AvtError: for invalid settings.
    """
    own = PretrainConfig.model_fields["transform"].default if config is None else config.transform
    return resolve_plugin("transform", validate(Plugin, merge(own.model_dump(), given), where="--transform"))


def why_no_decoder(source: Weights, transform: Plugin, size: Size) -> str | None:
    """State why the decoder cannot be evaluated on a family and images of a size; none if it can."""
    config = source.config
    if source.run is None or config is None or source.spec.objective is None:
        return f"{source.path} holds an encoder only"
    if not is_same_plugin(config.transform, transform):
        own, found = describe_plugin(config.transform), describe_plugin(transform)
        return f"the decoder of {source.path} was trained on {own}, not on {found}"
    if size != source.spec.size:
        trained, found = (f"{width}x{height}" for height, width in (source.spec.size, size))
        return f"the decoder of {source.path} was trained on images of {trained} px, these are {found} px"
    return None


def describe_plugin(plugin: Plugin) -> str:
    """Format a plugin as `NAME (KEY=VALUE, ...)`."""
    options = ", ".join(f"{key}={value}" for key, value in plugin.options.items())
    return f"{plugin.name} ({options})" if options else plugin.name


def is_same_plugin(a: Plugin, b: Plugin) -> bool:
    """Whether two plugins have one name and equal options; text compares equal to the number that it spells."""
    return describe_plugin(a) == describe_plugin(b)


def choose_images(prepared: PreparedImages, count: int | None) -> EvaluationImages:
    """Choose held-out images, and for each of them up to four training images for the ridge.

    Raises:
        AvtError: for more images than the split has, or if none remain for the ridge.
    """
    data = prepared.data
    name, split = held_out_split(data)
    if count is not None and count > len(split):
        raise AvtError(
            f"--count {count} asks for more images than the {len(split)} of the {name} split of '{prepared.dataset.name}'."
        )
    held_out = held_out_indices(data, count or COUNT)
    rest = torch.ones(len(data.train), dtype=torch.bool)
    if split is data.train:
        rest[held_out] = False
    left = rest.nonzero()[:, 0]
    if len(left) < 2:
        raise AvtError(
            f"'{prepared.dataset.name}' has {len(data.train)} training images and no test images: {len(held_out)} held out "
            "leave too few to fit the ridge on. Give a smaller --count."
        )
    return EvaluationImages(name, split, held_out, left[subset(len(left), FIT_PAIRS * len(held_out), "limit", len(left))])


def _run_family(source: Weights) -> TransformFamily:
    """The run's family with its statistics; for a bank, the distribution that it was drawn from."""
    assert source.config is not None
    distribution = build_transform(source.config, source.spec.size)
    return distribution.family if isinstance(distribution, BankFamily) else distribution


def _versions(images: Images, family: TransformFamily, size: Size, seed: int) -> TransformedPairs:
    """Draw `BANK` pairs each of one image in `BANK`, rounded up."""
    chosen = subset(len(images), -(-len(images) // BANK), seed, "retrieval images")
    rows = chosen.repeat_interleave(BANK)
    return TransformedPairs(images, rows, family, family.sample(len(rows), size, keyed_generator(seed, "retrieval")), size)
