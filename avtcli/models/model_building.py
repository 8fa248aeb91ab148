"""Encoder and model from their specification, with random or given weights."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from avtcli import registry
from avtcli.config.model_spec import ModelSpec
from avtcli.contracts import Backbone, TransformFamily
from avtcli.errors import AvtError
from avtcli.geometry.family_building import build_family
from avtcli.models.bounded_building import MAX_PIXELS, BoundedBuilding
from avtcli.models.encoder import Encoder
from avtcli.models.siamese import SiameseModel
from avtcli.objectives.objective_building import build_objective
from avtcli.seeding import seed_of


def build_encoder(spec: ModelSpec, *, seed: int = 0, weights: Mapping[str, Tensor] | None = None) -> Encoder:
    """Build the encoder with random weights: a function of the seed.

    `weights` are those that will be loaded, where a file describes the network: they bound what is allocated for it.

    Raises:
        AvtError: if its backbone plugin is missing or refuses its options, or the network is larger than its weights.
    """
    with _building(seed, weights):
        return _encoder(_backbone(spec), spec, spec.noise_scale)


def build_model(
    spec: ModelSpec, *, seed: int = 0, family: TransformFamily | None = None, weights: Mapping[str, Tensor] | None = None
) -> SiameseModel:
    """Build encoder and objective with random weights: a function of the seed.

    The objective decides the noise of the encoder. A family that is left out is built from the specification. For `weights`
    see `build_encoder`.

    Raises:
        AvtError: if a plugin is missing or refuses its options, the specification has no objective, or the network is larger
            than its weights.
    """
    if spec.objective is None or spec.transform is None:
        raise AvtError("These weights are an encoder alone: they come with no objective.")
    name, options = spec.objective.name, spec.objective.options
    with _building(seed, weights):
        family = family or build_family(spec.transform.name, spec.transform.options)
        backbone = _backbone(spec)
        with torch.random.fork_rng(devices=[]):  # the encoder's own layers follow the backbone in the stream of weights
            torch.default_generator.manual_seed(seed_of(seed, "decoder weights"))
            objective = build_objective(name, options, vector_dim=backbone.vector_dim, family=family)
        encoder = _encoder(backbone, spec, objective.noise_scale)
        return SiameseModel(encoder, objective, per_view=spec.bn_statistics == "per-view")


@contextlib.contextmanager
def _building(seed: int, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Seed the weights, bound what is allocated by those to be loaded, and explain what torch refuses."""
    bounded = contextlib.nullcontext() if weights is None else BoundedBuilding(weights)
    with torch.random.fork_rng(devices=[]), bounded:
        torch.default_generator.manual_seed(seed_of(seed, "weights"))
        try:
            yield
        except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            cause = str(error).strip().partition("\n")[0][:300]
            raise AvtError(f"The network cannot be built with these options: {type(error).__name__}: {cause}.") from error


def _backbone(spec: ModelSpec) -> Backbone:
    name, options, (height, width) = spec.backbone.name, spec.backbone.options, spec.size
    if height * width > MAX_PIXELS:
        raise AvtError(f"A network takes at most {MAX_PIXELS} pixels, found {height}x{width}: give `-o augment.crop`.")
    backbone: Backbone = registry.build("backbone", name, options, in_channels=spec.channels, image_size=spec.size)
    return backbone


def _encoder(backbone: Backbone, spec: ModelSpec, noise_scale: float) -> Encoder:
    mean, std = (values * (spec.channels // len(values)) for values in (spec.mean, spec.std))  # one for all, or one for each
    return Encoder(backbone, noise_scale=noise_scale, output=spec.layer, pixel_mean=mean, pixel_std=std)


def load_weights(module: nn.Module, tensors: dict[str, Tensor], *, path: Path) -> None:
    """Load weights, every name and shape of them.

    Raises:
        AvtError: naming the first missing and unexpected names, or the first tensor of another shape or sort, or one with
            values that are not finite.
    """
    own, another = module.state_dict(), f"{path} holds the weights of another network"
    sorts = ([n for n in own if n not in tensors], "missing"), ([n for n in tensors if n not in own], "unexpected")
    if any(names for names, _ in sorts):
        counts = (f"{len(n)} names are {sort} (the first: {next(iter(n), 'none')})" for n, sort in sorts)
        raise AvtError(f"{another}: {', '.join(counts)}.")
    for name, tensor in own.items():
        (found, kind), (expected, own_kind) = ((tuple(t.shape), t.is_floating_point()) for t in (tensors[name], tensor))
        if found != expected:
            raise AvtError(f"{another}: {name} has shape {found}, expected {expected}.")
        if kind != own_kind:
            raise AvtError(
                f"{path} holds the weights of another network: {name} is {tensors[name].dtype}, expected {tensor.dtype}."
            )
    check_finite(tensors, own, path=path)
    module.load_state_dict(tensors)


def check_finite(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], *, path: Path) -> None:
    """Refuse weights that are not finite in the precision of the network's own; an `AvtError` names the first."""
    for name, tensor in tensors.items():
        if not tensor.to(own[name].dtype).isfinite().all():
            raise AvtError(f"{path} holds weights that are not finite: {name}. Take an earlier checkpoint, or another file.")
