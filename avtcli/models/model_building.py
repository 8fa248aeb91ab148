"""Encoder and model from their specification, with random or given weights."""

from pathlib import Path

import torch
from torch import Tensor, nn

from avtcli import registry
from avtcli.config.model_spec import ModelSpec
from avtcli.contracts import Backbone, Objective, TransformFamily
from avtcli.errors import AvtError
from avtcli.geometry.family_building import build_family
from avtcli.models.encoder import Encoder
from avtcli.models.siamese import SiameseModel
from avtcli.seeding import seed_of


def build_encoder(spec: ModelSpec, *, seed: int = 0) -> Encoder:
    """Build the encoder with random weights: a function of the seed.

    Raises:
        AvtError: if its backbone plugin is missing or refuses its options.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "weights"))
        return _encoder(_backbone(spec), spec, spec.noise_scale)


def build_model(spec: ModelSpec, *, seed: int = 0, family: TransformFamily | None = None) -> SiameseModel:
    """Build encoder and objective with random weights: a function of the seed.

    The objective decides the noise of the encoder. A family that is left out is built from the specification.

    Raises:
        AvtError: if a plugin is missing or refuses its options, or the specification has no objective.
    """
    if spec.objective is None or spec.transform is None:
        raise AvtError("These weights are an encoder alone: they come with no objective.")
    name, options = spec.objective.name, spec.objective.options
    family = family or build_family(spec.transform.name, spec.transform.options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "weights"))
        backbone = _backbone(spec)
        with torch.random.fork_rng(devices=[]):  # the encoder's own layers follow the backbone in the stream of weights
            torch.default_generator.manual_seed(seed_of(seed, "decoder weights"))
            objective: Objective = registry.build("objective", name, options, vector_dim=backbone.vector_dim, family=family)
        return SiameseModel(_encoder(backbone, spec, objective.noise_scale), objective)


def _backbone(spec: ModelSpec) -> Backbone:
    name, options = spec.backbone.name, spec.backbone.options
    backbone: Backbone = registry.build("backbone", name, options, in_channels=spec.channels, image_size=spec.size)
    return backbone


def _encoder(backbone: Backbone, spec: ModelSpec, noise_scale: float) -> Encoder:
    return Encoder(backbone, noise_scale=noise_scale, output=spec.layer, pixel_mean=spec.mean, pixel_std=spec.std)


def load_weights(module: nn.Module, tensors: dict[str, Tensor], *, path: Path) -> None:
    """Load weights, every name and shape of them.

    Raises:
        AvtError: naming the first missing and unexpected names, or the first tensor of another shape.
    """
    own = module.state_dict()
    sorts = ([n for n in own if n not in tensors], "missing"), ([n for n in tensors if n not in own], "unexpected")
    if any(names for names, _ in sorts):
        counts = (f"{len(n)} names are {sort} (the first: {next(iter(n), 'none')})" for n, sort in sorts)
        raise AvtError(f"{path} holds the weights of another network: {', '.join(counts)}.")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            found, expected = tuple(tensors[name].shape), tuple(tensor.shape)
            raise AvtError(f"{path} holds the weights of another network: {name} has shape {found}, expected {expected}.")
    module.load_state_dict(tensors)
