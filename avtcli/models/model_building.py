"""Encoder and model from their specification, with random or given weights."""

from pathlib import Path

import torch
from torch import Tensor, nn

from avtcli import registry
from avtcli.config.model_spec import ModelSpec
from avtcli.errors import AvtError
from avtcli.models.encoder import Encoder
from avtcli.models.siamese import AVTModel
from avtcli.seeding import seed_of


def build_encoder(spec: ModelSpec, *, seed: int = 0) -> Encoder:
    """Make the encoder with random weights: a function of the seed, whatever else the process drew.

    Raises:
        AvtError: if its backbone plugin is missing or refuses its options.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "weights"))
        backbone = registry.build(
            "backbone", spec.backbone.name, spec.backbone.options, in_channels=spec.channels, image_size=spec.size
        )
        return Encoder(backbone, noise_scale=spec.noise_scale, output=spec.layer, pixel_mean=spec.mean, pixel_std=spec.std)


def build_model(spec: ModelSpec, *, seed: int = 0) -> AVTModel:
    """Make encoder and decoder with random weights: a function of the seed.

    Raises:
        AvtError: if the backbone plugin is missing or refuses its options.
    """
    encoder = build_encoder(spec, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "decoder weights"))
        return AVTModel(encoder, spec.outputs, has_log_var=spec.has_log_var, log_var_scale=spec.log_var_scale, views=spec.views)


def load_weights(module: nn.Module, tensors: dict[str, Tensor], *, path: Path) -> None:
    """Load weights, every name and shape of them.

    Raises:
        AvtError: naming the first missing and unexpected names, or the first tensor of another shape.
    """
    own = module.state_dict()
    missing, unexpected = [n for n in own if n not in tensors], [n for n in tensors if n not in own]
    if missing or unexpected:
        raise AvtError(
            f"{path} holds the weights of another network: {len(missing)} names are missing (the first: "
            f"{next(iter(missing), 'none')}), {len(unexpected)} are unexpected (the first: {next(iter(unexpected), 'none')})."
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            found, expected = tuple(tensors[name].shape), tuple(tensor.shape)
            raise AvtError(f"{path} holds the weights of another network: {name} has shape {found}, expected {expected}.")
    module.load_state_dict(tensors)
