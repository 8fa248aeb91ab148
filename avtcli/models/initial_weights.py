"""A run's weights before the first step: random, published, or those of an earlier run or file."""

import os
from pathlib import Path

from torch import Tensor

from avtcli.config.components import Plugin
from avtcli.config.model_spec import ModelSpec
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.contracts import TransformFamily
from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent
from avtcli.models.model_building import build_model, check_finite
from avtcli.models.siamese import SiameseModel
from avtcli.models.weights import PRETRAINED, open_weights
from avtcli.storage.tensor_files import read_tensors


def stored_backbone(plugin: Plugin) -> Plugin:
    """Return the backbone as it is stored with weights: building it again downloads nothing."""
    return Plugin(name=plugin.name, **{key: value for key, value in plugin.options.items() if key != PRETRAINED})


def build_initial(
    config: PretrainConfig, spec: ModelSpec, *, family: TransformFamily, resume: bool, on_event: OnEvent
) -> SiameseModel:
    """Build a run's model as it is before the first step, and report which weights it begins with.

    With `resume` a checkpoint will give all weights: they stay random here, and nothing is downloaded or read.

    Raises:
        AvtError: if the weights cannot be loaded, or none matches.
    """
    if resume:
        return build_model(spec, seed=config.seed, family=family)
    net = build_model(spec.model_copy(update={"backbone": config.backbone}), seed=config.seed, family=family)
    if pretrained := config.backbone.options.get(PRETRAINED):
        on_event(Notice(f"{config.backbone.name}: initialised with published weights ({PRETRAINED}={pretrained})"))
    if config.init_from is not None:
        load_matching(net, config.init_from, on_event=on_event)
    return net


def load_matching(net: SiameseModel, path: str | Path, *, on_event: OnEvent) -> None:
    """Load the weights that match by name and shape, and report how many did not; the others do not change.

    The path is a run folder, a checkpoint, an exported encoder, or a safetensors file in the names of the backbone or of its
    bare network, such as a timm model.

    Raises:
        AvtError: if the path does not parse, no weight of the backbone matches, or a matching one is not finite.
    """
    tensors, own = _read(Path(path), on_event=on_event), net.state_dict()
    bare = next((f"{name}." for name, module in net.named_modules() if module is net.encoder.backbone_model), "")
    prefixes = ("", "encoder.", "encoder.backbone.", bare)
    prefix = max(prefixes, key=lambda prefix: sum(prefix + name in own for name in tensors))
    found = {prefix + name: tensor for name, tensor in tensors.items()}
    for name in own:
        if (
            name.startswith("transformed.") and name not in found
        ):  # statistics of transformed images begin as those of originals
            originals = f"encoder.{name.removeprefix('transformed.').replace('/', '.')}"
            found |= {name: found[originals]} if originals in found else {}
    matched = {name: found[name] for name in own if name in found and _fits(found[name], own[name])}
    if not any(f"encoder.backbone.{name}" in matched for name, _ in net.encoder.backbone.named_parameters()):
        theirs, ours = min(tensors, default="none"), next(iter(own))
        raise AvtError(
            f"No weight of {path} fits the backbone by name and shape: its first of {len(tensors)} is {theirs} "
            f"{_shape(tensors.get(theirs))}, ours {ours} {_shape(own[ours])}. Give weights of the same backbone and options."
        )
    check_finite(matched, own, path=Path(path))
    net.load_state_dict(matched, strict=False)
    on_event(Notice(f"weights of {path}: {_report(own, found, matched)}"))


def _read(path: Path, *, on_event: OnEvent) -> dict[str, Tensor]:
    if os.path.isfile(path) and path.suffix == ".safetensors":
        return read_tensors(path).tensors
    return open_weights(path, on_event=on_event).tensors


def _fits(tensor: Tensor, own: Tensor) -> bool:
    return tensor.shape == own.shape and tensor.is_floating_point() == own.is_floating_point()


def _report(own: dict[str, Tensor], found: dict[str, Tensor], matched: dict[str, Tensor]) -> str:
    missing = [name for name in own if name not in found]
    unexpected = sorted(name for name in found if name not in own)
    others = [f"{n} {_shape(found[n])} for {_shape(own[n])}" for n in own if n in found and n not in matched]
    sorts = (("missing", missing), ("unexpected", unexpected), ("of another shape", others))
    counts = [f"{len(names)} {sort}" + (f" (the first: {names[0]})" if names else "") for sort, names in sorts]
    return ", ".join([f"{len(matched)} of {len(own)} names matched", *counts])


def _shape(tensor: Tensor | None) -> str:
    return "" if tensor is None else f"({', '.join(str(side) for side in tensor.shape)})"
