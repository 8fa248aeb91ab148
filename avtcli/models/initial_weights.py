"""A run's weights before the first step: random, published, or those of an earlier run or file."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from math import isqrt, prod
from pathlib import Path
from typing import Final

from torch import Tensor, nn

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
from avtcli.storage.torch_files import read_torch, tensors_within

LEVELS: Final = 10
"""Parts of a name that may be a prefix."""
NOT_EVALUATED: Final = ("student", "momentum", "encoder_k")
"""Of DINO the teacher is evaluated; of MoCo and others with a momentum encoder the network that is trained."""


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

    The path is a run folder, a checkpoint, an exported encoder, or a file of safetensors or torch.save in the names of the
    backbone or of its bare network, such as a timm model: also below other keys, and with a prefix such as
    `module.encoder_q.`. A first convolution for 3 channels and position embeddings for another grid are converted as timm
    does.

    Raises:
        AvtError: if the path does not parse, no weight of the backbone matches, or a matching one is not finite.
    """
    tensors, own = _read(Path(path), on_event=on_event), net.state_dict()
    bare = next((f"{name}." for name, module in net.named_modules() if module is net.encoder.backbone_model), "")
    theirs, ours = _matching_prefixes(tensors, own, dict.fromkeys(("", "encoder.", "encoder.backbone.", bare)))
    found = {ours + name.removeprefix(theirs): tensor for name, tensor in tensors.items() if name.startswith(theirs)}
    for name in own:
        if (
            name.startswith("transformed.") and name not in found
        ):  # statistics of transformed images begin as those of originals
            originals = f"encoder.{name.removeprefix('transformed.').replace('/', '.')}"
            found |= {name: found[originals]} if originals in found else {}
    network = net.encoder.backbone_model
    adapted = {name: _adapt(name, found[name], own[name], network) for name in own if name in found}
    matched = {name: tensor for name, tensor in adapted.items() if _fits(tensor, own[name])}
    if not any(f"encoder.backbone.{name}" in matched for name, _ in net.encoder.backbone.named_parameters()):
        first, own_first = min(tensors, default="none"), next(iter(own))
        begins = f"{first} {_shape(tensors.get(first))}".rstrip()
        raise AvtError(
            f"No weight of {path} fits the backbone: its first is {begins}, ours {own_first} {_shape(own[own_first])}. Give "
            "weights of the same backbone and options."
        )
    check_finite(matched, own, path=Path(path))
    net.load_state_dict(matched, strict=False)
    others = [name for name in tensors if not name.startswith(theirs)]
    removed = [f"without the prefix '{theirs}'"] if theirs else []
    on_event(Notice(f"weights of {path}: {', '.join([_report(own, found, matched, others), *removed])}"))


def _read(path: Path, *, on_event: OnEvent) -> dict[str, Tensor]:
    if not os.path.exists(path):
        raise AvtError(f"There is no run folder, checkpoint or file {path}, which --init-from names.")
    if not os.path.isfile(path):
        return open_weights(path, on_event=on_event).tensors
    return read_tensors(path).tensors if path.suffix == ".safetensors" else tensors_within(read_torch(path))


def _matching_prefixes(names: Iterable[str], own: Collection[str], bases: Collection[str]) -> tuple[str, str]:
    """Find the prefix of a file's names, and the one to put in its place, by which the most names are our own.

    Where several match equally, such as a network and its moving average, the one that evaluations use comes first.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for name in names:
        cuts = [0, *(at + 1 for at, mark in enumerate(name) if mark == ".")][:LEVELS]
        counts.update((name[:cut], base) for cut in cuts for base in bases if base + name[cut:] in own)

    def rank(prefixes: tuple[str, str]) -> tuple[int, bool, int]:
        return counts[prefixes], not any(word in prefixes[0] for word in NOT_EVALUATED), -len(prefixes[0])

    return max(counts, key=rank, default=("", ""))


def _adapt(name: str, tensor: Tensor, own: Tensor, network: nn.Module) -> Tensor:
    """Convert a kernel for 3 channels, and position embeddings (1, tokens, C) for another grid, to the shape of our own.

    The arithmetic is that of timm for its published weights. Any other tensor is returned as it is.
    """
    if tensor.shape == own.shape or tensor.ndim != own.ndim:
        return tensor
    if own.ndim == 4 and tensor.shape == (own.shape[0], 3, *own.shape[2:]):
        from timm.models import adapt_input_conv

        return adapt_input_conv(own.shape[1], tensor)  # type: ignore[no-any-return]
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if grid is None or own.ndim != 3 or not name.endswith("pos_embed") or tensor.shape[::2] != own.shape[::2]:
        return tensor
    prefix_tokens = own.shape[1] - prod(grid)
    cells = tensor.shape[1] - prefix_tokens
    if cells < 1 or isqrt(cells) ** 2 != cells:
        return tensor
    from timm.layers import resample_abs_pos_embed

    return resample_abs_pos_embed(tensor, list(grid), num_prefix_tokens=prefix_tokens)  # type: ignore[no-any-return]


def _fits(tensor: Tensor, own: Tensor) -> bool:
    return tensor.shape == own.shape and tensor.is_floating_point() == own.is_floating_point()


def _report(own: dict[str, Tensor], found: dict[str, Tensor], matched: dict[str, Tensor], other_names: Sequence[str]) -> str:
    def reshaped(names: Iterable[str], word: str) -> list[str]:
        return [f"{name} {_shape(found[name])} {word} {_shape(own[name])}" for name in names]

    missing = [name for name in own if name not in found]
    unexpected = sorted([*(name for name in found if name not in own), *other_names])
    others = reshaped((name for name in own if name in found and name not in matched), "for")
    converted = reshaped((name for name in matched if found[name].shape != own[name].shape), "to")
    sorts = (("missing", missing), ("unexpected", unexpected), ("of another shape", others))
    counts = [_count(names, sort) for sort, names in sorts] + ([_count(converted, "converted")] if converted else [])
    return ", ".join([f"{len(matched)} of {len(own)} names matched", *counts])


def _count(names: Sequence[str], sort: str) -> str:
    return f"{len(names)} {sort}" + (f" (the first: {names[0]})" if names else "")


def _shape(tensor: Tensor | None) -> str:
    return "" if tensor is None else f"({', '.join(str(side) for side in tensor.shape)})"
