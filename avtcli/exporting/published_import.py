"""From a checkpoint that the authors published to a run folder: two layouts, two networks, no code from the file.

The only place where a pickle is read; `weights_only=True` builds tensors and plain values and refuses everything else.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from avtcli import registry
from avtcli.config.model_spec import ModelSpec
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import resolve
from avtcli.config.toml_text import to_toml
from avtcli.errors import AvtError
from avtcli.events import OnEvent, Saved
from avtcli.models.model_building import build_model
from avtcli.runtime.environment import describe_environment
from avtcli.storage.checkpoints import save_checkpoint
from avtcli.storage.files import refuse_existing
from avtcli.storage.run_folders import create_run, default_folder

RECIPES: Final = {"nin": "cifar10-nin", "alexnet": "imagenet-alexnet"}
"""The published recipe that each published network came from."""

UNKNOWN: Final = "unknown"
"""The fingerprint of the data that an imported network was trained on."""

_LAYERS: Final = {"Conv": 0, "BatchNorm": 1}  # the release's names inside a unit -> the places in ours
_HEADS: Final = {"fc": "objective.decoder.mean_head", "fc2": "objective.decoder.log_var_head"}

MODULES: Final[Mapping[str, Mapping[str, str]]] = {
    "nin": {
        **{
            f"nin._feature_blocks.{block}.Block{block + 1}_ConvB{unit + 1}.layers.{layer}": (
                f"encoder.backbone.conv{block + 1}.{unit}.{place}"
            )
            for block in range(4)
            for unit in range(3)
            for layer, place in _LAYERS.items()
        },
        **{
            f"nin._feature_blocks.1.Block2_Encode.layers.{layer}": f"encoder.log_var.{place}"
            for layer, place in _LAYERS.items()
        },
        **_HEADS,
    },
    "alexnet": {
        **{
            f"Alexnet._feature_blocks.{block}.{place}": f"encoder.backbone.{name}.{place}"
            for block, name in {0: "conv1", 2: "conv2", 4: "conv3", 5: "conv4", 6: "conv5"}.items()
            for place in _LAYERS.values()
        },
        **{f"Alexnet._feature_blocks.5.3.layers.{layer}": f"encoder.log_var.{place}" for layer, place in _LAYERS.items()},
        # the release's block begins with a flattening layer
        **{f"Alexnet._feature_blocks.8.{place}": f"encoder.backbone.fc_block.{place - 1}" for place in (1, 2, 4, 5)},
        **_HEADS,
    },
}
"""Of each network, the release's modules that hold tensors, and ours."""


@dataclass(frozen=True)
class Published:
    """What a published file holds.

    Attributes:
        layout: state_dict (CIFAR: tensors by name, `module.` before each) or epoch_and_network (ImageNet).
        epoch: as the file states it, or none.
        tensors: by the release's names, without `module.`.
    """

    layout: str
    epoch: int | None
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class ImportResult:
    """What `avt import` reports; the names are the release's."""

    run: str
    backbone: str
    layout: str
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    epoch: int | None


def import_checkpoint(file: Path, *, backbone: str | None, out: Path | None, on_event: OnEvent) -> ImportResult:
    """Make a run folder of a published checkpoint; its step is the epoch that the file states, or 0.

    Args:
        file: what torch.save wrote.
        backbone: nin or alexnet; left out, the names in the file say it.
        out: the run folder; left out, runs/DATE-import-BACKBONE-OBJECTIVE.
        on_event: told what happens.

    Raises:
        AvtError: if the file is damaged, holds more than tensors and plain values, or is of another network.
        RunFailedError: if the disk fails.
    """
    if out is not None:
        refuse_existing(out)
    published = read_published(file)
    name = backbone or guess_backbone(published, file)
    config = resolve({}, recipe=RECIPES[name])
    spec = _spec(config)
    tensors = _renamed(published, name, spec, file)
    run = out or default_folder("import", name, config.objective.name)
    environment = describe_environment(
        device="cpu",
        processes=1,
        plugins=[(kind, getattr(config, kind).name) for kind in registry.KINDS],
        data_fingerprint=UNKNOWN,
    )
    create_run(run, to_toml(config), environment)
    about = {
        "config": config.model_dump(mode="json", exclude_none=True),
        "model": spec.model_dump(mode="json", exclude_none=True),
        "environment": environment,
        "imported": {"file": file.name, "layout": published.layout, "epoch": published.epoch},
    }
    on_event(Saved(save_checkpoint(run / "checkpoints", published.epoch or 0, model=tensors, state={}, about=about)))
    return ImportResult(str(run), name, published.layout, list(published.tensors), [], [], published.epoch)


def read_published(file: Path) -> Published:
    """Read a checkpoint of either layout.

    Raises:
        AvtError: if it is neither, damaged, or holds more than tensors and plain values.
    """
    content = _load(file)
    layout, epoch, tensors = "state_dict", None, content
    if isinstance(content, Mapping) and isinstance(content.get("network"), Mapping):
        layout, epoch, tensors = "epoch_and_network", content.get("epoch"), content["network"]
        if type(epoch) is not int or epoch < 0:
            raise AvtError(f"{file} states the epoch {epoch!r}, expected a whole number from 0.")
    if not _is_state_dict(tensors):
        raise AvtError(
            f"{file} holds {_in_words(content)}, expected tensors by name, or a dict of 'epoch' and 'network', "
            "as the authors published them."
        )
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    return Published(layout, epoch, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()})


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())


def _in_words(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dict of {', '.join(repr(key) for key in list(content)[:5]) or 'nothing'}"
    return f"a {type(content).__name__}"


def _load(file: Path) -> Any:
    """Read a pickle of tensors and plain values. Anything else is refused before any of it is called."""
    try:
        with file.open("rb") as opened:
            start = opened.read(4)
    except OSError as error:
        raise AvtError(f"{file} cannot be read: {error.strerror}.") from error
    zipped = start == b"PK\x03\x04"  # since PyTorch 1.6; only this form can be mapped into memory
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols: what is refused is refused below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # what a damaged file raises is anyone's guess
        outlaw = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if outlaw:
            raise AvtError(
                f"{file} asks for {outlaw[1]}: it holds more than tensors and plain values, and nothing in it was run. "
                "Ask its maker for a plain state dict."
            ) from error
        cause = ": ".join([type(error).__name__, *str(error).split(". ")[0].splitlines()[:1]])
        raise AvtError(
            f"{file} is not a checkpoint that torch.save wrote, or not the whole of one ({cause}). Fetch it again."
        ) from error


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def guess_backbone(published: Published, file: Path) -> str:
    """The network whose trunk the names belong to.

    Raises:
        AvtError: if they belong to neither.
    """
    trunks = {name: set(modules) - set(_HEADS) for name, modules in MODULES.items()}
    for name, modules in trunks.items():
        if any(_module_of(key) in modules for key in published.tensors):
            return name
    unexpected = next((key for key in published.tensors if _module_of(key) not in _HEADS), "none")
    missing = " or ".join(f"{next(iter(modules))}.weight ({name})" for name, modules in MODULES.items())
    raise AvtError(
        f"{file} is of another network: none of its {len(published.tensors)} names is of nin's or alexnet's trunk "
        f"(the first unexpected: {unexpected}; the first missing: {missing})."
    )


def _spec(config: PretrainConfig) -> ModelSpec:
    """What the recipe's data and parts make of the model; the data themselves are not needed."""
    data, side = config.dataset.options, config.augment.crop
    return ModelSpec(
        backbone=config.backbone,
        channels=len(data["mean"]),
        size=(side, side),
        mean=data["mean"],
        std=data["std"],
        objective=config.objective,
        transform=config.transform,
    )


def _renamed(published: Published, backbone: str, spec: ModelSpec, file: Path) -> dict[str, Tensor]:
    """The tensors under our names.

    Raises:
        AvtError: naming the first missing and unexpected names, or the first tensor of another shape.
    """
    with torch.device("meta"):  # names and shapes alone
        own = build_model(spec).state_dict()
    theirs = {ours: theirs for theirs, ours in MODULES[backbone].items()}
    expected = {f"{theirs[_module_of(name)]}.{name.rpartition('.')[2]}": name for name in own}
    missing = [name for name in expected if name not in published.tensors]
    unexpected = [name for name in published.tensors if name not in expected]
    if missing or unexpected:
        raise AvtError(
            f"{file} holds no whole '{backbone}': of {len(expected)} names {len(expected) - len(missing)} matched, "
            f"{len(missing)} are missing (the first: {next(iter(missing), 'none')}), "
            f"{len(unexpected)} are unexpected (the first: {next(iter(unexpected), 'none')})."
        )
    out = {}
    for name, ours in expected.items():
        tensor, like = published.tensors[name], own[ours]
        if tensor.shape != like.shape or tensor.is_floating_point() != like.is_floating_point():
            found, wanted = (f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for t in (tensor, like))
            raise AvtError(f"{file} holds another '{backbone}': {name} is {found}, expected {wanted}.")
        out[ours] = tensor.to(like.dtype)
    return out
