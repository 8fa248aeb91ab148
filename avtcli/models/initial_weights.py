"""The weights that a network begins with: random, published, or those of an earlier run or file."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isqrt, prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from avtcli import registry
from avtcli.config.components import Plugin
from avtcli.config.model_spec import ModelSpec
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import resolve_plugin
from avtcli.contracts import ImageData, Size, TransformFamily
from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent
from avtcli.models.encoder import Encoder
from avtcli.models.model_building import build_encoder, build_model, check_finite
from avtcli.models.siamese import SiameseModel
from avtcli.models.weights import PRETRAINED, Weights, open_weights
from avtcli.plugin_options import absolute_path
from avtcli.storage.run_folders import find_run
from avtcli.storage.tensor_files import read_tensors
from avtcli.storage.torch_files import read_torch, tensors_within

LEVELS: Final = 10
"""Parts of a name that may be a prefix."""
BACKBONE: Final = "encoder.backbone."
HEADS: Final = {"log-variance": "encoder.log_var.", "objective": "objective."}
"""What a model has in addition to the backbone, by the beginning of its names."""
SHOWN: Final = 2
"""Names in a list of a report."""
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


def build_weights(
    backbone: Plugin, init_from: str | Path | None, *, data: ImageData, size: Size, seed: int, on_event: OnEvent
) -> Weights:
    """Build a network by name for images cropped to `size`, to be measured: its weights published, from a file, or random.

    Raises:
        AvtError: if both are asked for, or the weights cannot be loaded, or none matches.
    """
    full = registry.full_name("backbone", backbone.name)
    if full != backbone.name:
        on_event(Notice(f"no plugin is called '{backbone.name}': using {full}"))
    backbone = resolve_plugin("backbone", backbone)
    spec = ModelSpec(backbone=backbone, channels=data.channels, size=size, mean=data.mean, std=data.std)
    stated = backbone.options.get(PRETRAINED)
    if stated and init_from is not None:
        raise AvtError(f"Both backbone.{PRETRAINED} and --init-from {init_from} give the weights: leave one of them out.")
    encoder = build_encoder(spec, seed=seed)
    about: dict[str, Any] = {"weights": f"{PRETRAINED}={stated}" if stated else "random"}
    if init_from is not None:
        path = absolute_path(find_run(init_from))
        left = load_matching(nn.ModuleDict({"encoder": encoder}), path, on_event=on_event)
        about = {"weights": f"init_from={path}", "uninitialised": left}
    elif not stated:
        published = f"-o backbone.{PRETRAINED}=true or " if PRETRAINED in backbone.options else ""
        on_event(Notice(f"the weights of {full} are random; {published}--init-from FILE gives it others"))
    spec = spec.model_copy(update={"backbone": stored_backbone(backbone)})
    return Weights(Path(full), None, spec, encoder.state_dict(), about)


def load_matching(net: nn.Module, path: str | Path, *, on_event: OnEvent) -> list[str]:
    """Load the weights that match by name and shape, and report which did not; the others do not change.

    The path is a run folder, a checkpoint, an exported encoder, or a file of safetensors or torch.save in the names of the
    backbone or of its bare network, such as a timm model: also below other keys, and with a prefix such as
    `module.encoder_q.`. A first convolution for 3 channels and position embeddings for another grid are converted as timm
    does.

    Args:
        net: a model, or another module whose `encoder` is an `Encoder`.
        path: of the weights.
        on_event: receives the report.

    Returns:
        The names of the encoder's weights and statistics that did not match.

    Raises:
        AvtError: if the path does not parse, no weight of the backbone matches, or a matching one is not finite.
    """
    encoder = net.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    tensors, own, network = _read(Path(path), on_event=on_event), net.state_dict(), encoder.backbone_model
    bare = next((f"{name}." for name, module in net.named_modules() if module is network), "")
    theirs, ours = _matching_prefixes(tensors, own, dict.fromkeys(("", "encoder.", BACKBONE, bare)))
    sources = {ours + name.removeprefix(theirs): name for name in tensors if name.startswith(theirs)}  # by our own name
    for name in own:
        if (
            name.startswith("transformed.") and name not in sources
        ):  # statistics of transformed images begin as those of originals
            originals = f"encoder.{name.removeprefix('transformed.').replace('/', '.')}"
            sources |= {name: sources[originals]} if originals in sources else {}
    found = {name: tensors[sources[name]] for name in own if name in sources}
    adapted = {name: _adapt(name, tensor, own[name], network) for name, tensor in found.items()}
    matched = {name: tensor for name, tensor in adapted.items() if _fits(tensor, own[name])}
    if not any(f"{BACKBONE}{name}" in matched for name, _ in encoder.backbone.named_parameters()):
        first, own_first = min(tensors, default="none"), next(iter(own))
        begins = f"{first} {_shape(tensors.get(first))}".rstrip()
        raise AvtError(
            f"No weight of {path} fits the backbone: its first is {begins}, ours {own_first} {_shape(own[own_first])}. Give "
            "weights of the same backbone and options."
        )
    check_finite(matched, own, path=Path(path))
    net.load_state_dict(matched, strict=False)
    unused = sorted(tensors.keys() - {sources[name] for name in matched})
    parts = [_loaded(own, found, matched, bare), *_converted(own, found, matched), *_anew(own, matched)]
    parts += [f"not used: {_first(unused)}"] if unused else []
    parts += [f"read without the prefix '{theirs}'"] if theirs else []
    on_event(Notice(f"weights of {path}: {'; '.join(parts)}"))
    left = [name for name in own if name.startswith("encoder.") and name not in matched and own[name].is_floating_point()]
    return [name.removeprefix("encoder.") for name in left]


def report_uninitialised(source: Weights, encoder: Encoder, layers: Sequence[str], size: Size, *, on_event: OnEvent) -> None:
    """Say which weights that the layers depend on were not in the file that the backbone started from, if any."""
    names = source.about.get("uninitialised")
    if names and (left := _reached(encoder, layers, size, names)):
        on_event(Notice(f"these layers depend on weights that the file does not have, and that are random: {_first(left)}"))


def _reached(encoder: Encoder, layers: Sequence[str], size: Size, names: Collection[str]) -> list[str]:
    """Return those of the encoder's weights, by name, that features of the layers depend on, for images of (height, width)."""
    taps = encoder.features(torch.zeros(1, len(encoder.pixel_mean), *size), layers)
    parameters = dict(encoder.named_parameters())
    grads = torch.autograd.grad([tap.sum() for tap in taps.values()], list(parameters.values()), allow_unused=True)
    used = {name for name, grad in zip(parameters, grads, strict=True) if grad is not None}
    modules = {name.rpartition(".")[0] for name in used}  # to which statistics belong
    return [name for name in names if (name in used if name in parameters else name.rpartition(".")[0] in modules)]


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


def _loaded(own: Mapping[str, Tensor], found: Mapping[str, Tensor], matched: Collection[str], bare: str) -> str:
    """Say how much of the backbone was loaded; counters of batches, which nothing depends on, are no part of it."""
    names = [name for name, tensor in own.items() if name.startswith(BACKBONE) and tensor.is_floating_point()]
    left = [name for name in names if name not in matched]
    if not left:
        return f"the whole backbone ({len(names)} tensors)"
    texts = [name.removeprefix(bare if name.startswith(bare) else BACKBONE) for name in left]
    if left[0] in found:
        texts[0] += f" {_shape(found[left[0]])} for {_shape(own[left[0]])}"
    return f"{len(names) - len(left)} of the backbone's {len(names)} tensors, not {_first(texts)}"


def _converted(own: Mapping[str, Tensor], found: Mapping[str, Tensor], matched: Collection[str]) -> list[str]:
    """Say what had another shape in the file."""
    out = []
    for name in (name for name in matched if found[name].shape != own[name].shape):
        what, unit = ("first convolution", "channels") if own[name].ndim == 4 else ("position embeddings", "tokens")
        out.append(f"{what} converted from {found[name].shape[1]} to {own[name].shape[1]} {unit}")
    return list(dict.fromkeys(out))


def _anew(own: Mapping[str, Tensor], matched: Collection[str]) -> list[str]:
    """Say which heads begin with random weights."""
    heads = [head for head, prefix in HEADS.items() if any(n.startswith(prefix) and n not in matched for n in own)]
    return [f"avt's own heads start at random ({', '.join(heads)})"] if heads else []


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _shape(tensor: Tensor | None) -> str:
    return "" if tensor is None else f"({', '.join(str(side) for side in tensor.shape)})"
