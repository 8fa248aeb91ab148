"""Everything that an evaluation is made of, built and checked before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass
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
from avtcli.features.transformed_pairs import Pairs, sample_pairs
from avtcli.geometry.bank_family import BankFamily
from avtcli.geometry.family_building import build_family
from avtcli.models.encoder import Encoder
from avtcli.models.weights import Weights, restore_encoder
from avtcli.runtime.devices import choose_device
from avtcli.runtime.execution import prepare_for_inference
from avtcli.seeding import keyed_generator, subset
from avtcli.training.training_setup import build_transform

COUNT: Final = 1000
FIT_PAIRS: Final = 4
"""To fit the ridge on, for each held-out pair."""


@dataclass(frozen=True)
class Settings:
    """What is measured how.

    Attributes:
        transform: a family by name and options, over those of the run; empty for the run's own.
        layer: the tap that the ridge reads, or none for the code.
        count: held-out images, or none for 1 000, or for all where there are fewer.
        seed: of everything that is drawn.
        device: where the arithmetic happens.
        workers: processes that read images which do not fit in memory, or none for auto.
    """

    transform: Mapping[str, Any]
    layer: str | None = None
    count: int | None = None
    seed: int = 0
    device: str = "auto"
    workers: int | None = None


@dataclass(frozen=True)
class Choice:
    """Which images are used.

    Attributes:
        name: of the held-out split, test or train.
        split: the same.
        held_out: numbers in it, (n,) int64.
        fit: numbers in the train split, none of the held-out images, for the ridge to be fitted on.
    """

    name: str
    split: Split
    held_out: Tensor
    fit: Tensor


@dataclass(frozen=True)
class EvaluationSetup:
    """What is measured, on what.

    Attributes:
        plugin: the family of transformations by name.
        family: the same, with the statistics that the run had where it is the run's own.
        no_decoder: why there are no figures of a decoder, or none where there are.
        encoder: the trained one, in eval mode, on the device.
        layer: the tap that the ridge reads.
        choice: which images.
        held_out: one pair an image.
        versions: some of the images, 50 pairs each, one image after the other.
        fit: pairs for the ridge.
        device: where the arithmetic happens.
        seed: of everything that is drawn.
    """

    plugin: Plugin
    family: TransformFamily
    no_decoder: str | None
    encoder: Encoder
    layer: str
    choice: Choice
    held_out: Pairs
    versions: Pairs
    fit: Pairs
    device: torch.device
    seed: int


def build_evaluation_setup(subject: EvaluationTarget, settings: Settings) -> EvaluationSetup:
    """Build all that an evaluation needs.

    Raises:
        AvtError: for a layer or family that does not exist, or more images than there are.
    """
    source, prepared, seed = subject.source, subject.prepared, settings.seed
    encoder = restore_encoder(source)
    layer = settings.layer or encoder.backbone.code_tap
    tap_shapes(encoder, [layer], prepared.size)  # a layer or images that do not fit are told before anything is read
    plugin = choose_transform(source.config, settings.transform)
    no_decoder = why_no_decoder(source, plugin, prepared.size)
    family = _run_family(source) if no_decoder is None else build_family(plugin)
    choice = choose_images(prepared, settings.count)
    device = torch.device(choose_device(settings.device))
    workers = settings.workers
    images = read_images(choice.split, choice.held_out, prepared, device=device, workers=workers)
    to_fit = read_images(prepared.data.train, choice.fit, prepared, device=device, workers=workers)
    return EvaluationSetup(
        plugin=plugin,
        family=family,
        no_decoder=no_decoder,
        encoder=prepare_for_inference(encoder, device),
        layer=layer,
        choice=choice,
        held_out=sample_pairs(images, family, prepared.size, key=(seed, "held out")),
        versions=_versions(images, family, prepared.size, seed),
        fit=sample_pairs(to_fit, family, prepared.size, key=(seed, "ridge")),
        device=device,
        seed=seed,
    )


def choose_transform(config: PretrainConfig | None, given: Mapping[str, Any]) -> Plugin:
    """The family to draw from: what was given over the run's own, or over the default of a run.

    Raises:
        AvtError: if it is not a name and options.
    """
    own = PretrainConfig.model_fields["transform"].default if config is None else config.transform
    table = merge({"transform": own.model_dump()}, {"transform": given})["transform"]  # another name drops the run's options
    return resolve_plugin("transform", validate(Plugin, table, where="--transform"))


def why_no_decoder(source: Weights, plugin: Plugin, size: Size) -> str | None:
    """Why the source's decoder has nothing to say of the family's transformations of images of a size; none if it has."""
    config = source.config
    if source.run is None or config is None or not source.spec.outputs:
        return f"{source.path} holds an encoder alone"
    own, asked = in_words(config.transform), in_words(plugin)
    if own != asked:
        return f"the decoder of {source.path} was trained on {own}, not on {asked}"
    if size != source.spec.size:
        found, expected = (f"{width}x{height}" for height, width in (size, source.spec.size))
        return f"the decoder of {source.path} was trained on images of {expected} px, these are {found} px"
    return None


def in_words(plugin: Plugin) -> str:
    """A plugin's name, and its options in parentheses: `0.1` reads the same as a number and as text."""
    options = ", ".join(f"{key}={value}" for key, value in plugin.options.items())
    return f"{plugin.name} ({options})" if options else plugin.name


def choose_images(prepared: PreparedImages, count: int | None) -> Choice:
    """Choose the images to measure on, and four times as many, or all there are, to fit the ridge on.

    Raises:
        AvtError: for more images than there are, or if none is left to fit on.
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
    return Choice(name, split, held_out, left[subset(len(left), FIT_PAIRS * len(held_out), "limit", len(left))])


def _run_family(source: Weights) -> TransformFamily:
    """The run's family with the statistics that it had; of a bank, the distribution behind it."""
    assert source.config is not None
    distribution = build_transform(source.config, source.spec.size)
    return distribution.family if isinstance(distribution, BankFamily) else distribution


def _versions(images: Images, family: TransformFamily, size: Size, seed: int) -> Pairs:
    """A pair in all as the held-out images have, of one image for each 50 of them, rounded up."""
    chosen = subset(len(images), -(-len(images) // BANK), seed, "retrieval images")
    rows = chosen.repeat_interleave(BANK)
    parameters = family.sample(len(rows), size, keyed_generator(seed, "retrieval"))
    return Pairs(images, rows, family, parameters, size)
