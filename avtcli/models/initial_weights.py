"""What a run's weights are before the first step: random, published, or those of an earlier run or file."""

from pathlib import Path

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from avtcli.config.components import Plugin
from avtcli.config.model_spec import ModelSpec
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.contracts import TransformFamily
from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent
from avtcli.models.model_building import build_model
from avtcli.models.siamese import SiameseModel
from avtcli.models.weights import open_weights

PRETRAINED = "pretrained"
"""The option of a backbone that asks for published weights: of a run's beginning, and not of what is stored beside weights."""

_PREFIXES = ("", "encoder.", "encoder.backbone.", "encoder.backbone.model.")
"""What stands before the names of a whole run, an exported encoder, a backbone, and a model of timm."""


def stored_backbone(plugin: Plugin) -> Plugin:
    """The backbone as it is stored beside weights: building it again fetches nothing."""
    return Plugin(name=plugin.name, **{key: value for key, value in plugin.options.items() if key != PRETRAINED})


def build_initial(
    config: PretrainConfig, spec: ModelSpec, *, family: TransformFamily, resume: bool, on_event: OnEvent
) -> SiameseModel:
    """Make a run's model as it is before the first step.

    Args:
        config: the settings; the backbone's own say whether it begins with published weights.
        spec: what to build.
        family: of the transformations, for the objective.
        resume: whether all weights will come from a checkpoint: then they stay random here, and nothing is fetched or read.
        on_event: told which weights were taken.

    Raises:
        AvtError: if the weights cannot be had, or none fits.
    """
    if resume:
        return build_model(spec, seed=config.seed, family=family)
    net = build_model(spec.model_copy(update={"backbone": config.backbone}), seed=config.seed, family=family)
    if PRETRAINED in config.backbone.options:
        on_event(Notice(f"{config.backbone.name}: built with {PRETRAINED}={config.backbone.options[PRETRAINED]}"))
    if config.init_from is not None:
        load_matching(net, config.init_from, on_event=on_event)
    return net


def load_matching(net: SiameseModel, path: str | Path, *, on_event: OnEvent) -> None:
    """Load the weights that match by name and shape, and tell how many did not.

    Args:
        net: encoder and decoder; what does not match stays as it is.
        path: a run folder, a checkpoint, an exported encoder, or a safetensors file in the backbone's or timm's own names.
        on_event: told what matched.

    Raises:
        AvtError: if the path does not read, or no weight of the backbone matches.
    """
    tensors, own = _read(Path(path), on_event=on_event), net.state_dict()
    prefix = max(_PREFIXES, key=lambda prefix: sum(prefix + name in own for name in tensors))
    found = {prefix + name: tensor for name, tensor in tensors.items()}
    matched = {name: found[name] for name in own if name in found and found[name].shape == own[name].shape}
    if not any(f"encoder.backbone.{name}" in matched for name, _ in net.encoder.backbone.named_parameters()):
        theirs, ours = next(iter(tensors), "none"), next(iter(own))
        raise AvtError(
            f"No weight of {path} fits the backbone by name and shape: its first of {len(tensors)} is {theirs} "
            f"{_shape(tensors.get(theirs))}, ours {ours} {_shape(own[ours])}. Give weights of the same backbone and options."
        )
    net.load_state_dict(matched, strict=False)
    on_event(Notice(f"weights of {path}: {_report(own, found, matched)}"))


def _read(path: Path, *, on_event: OnEvent) -> dict[str, Tensor]:
    """All tensors of a run, a checkpoint or a safetensors file of any origin."""
    if not (path.is_file() and path.suffix == ".safetensors"):
        return open_weights(path, on_event=on_event).tensors
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise AvtError(f"{path} does not parse as safetensors: {error}. Was it cut short?") from error


def _report(own: dict[str, Tensor], found: dict[str, Tensor], matched: dict[str, Tensor]) -> str:
    """How many names matched, and how many did not, with the first of each sort."""
    missing = [name for name in own if name not in found]
    unexpected = [name for name in found if name not in own]
    others = [f"{n} {_shape(found[n])} for {_shape(own[n])}" for n in own if n in found and n not in matched]
    sorts = (("missing", missing), ("unexpected", unexpected), ("of another shape", others))
    counts = [f"{len(names)} {sort}" + (f" (the first: {names[0]})" if names else "") for sort, names in sorts]
    return ", ".join([f"{len(matched)} of {len(own)} names matched", *counts])


def _shape(tensor: Tensor | None) -> str:
    return "" if tensor is None else f"({', '.join(str(side) for side in tensor.shape)})"
