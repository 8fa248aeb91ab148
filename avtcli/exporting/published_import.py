"""Import of checkpoints that the authors published, in two layouts, into run folders."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from avtcli import registry
from avtcli.config.components import plugin_fields
from avtcli.config.model_spec import ModelSpec
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import resolve
from avtcli.config.toml_text import to_toml
from avtcli.contracts import PublishedCheckpoint
from avtcli.data.datasets import UNKNOWN
from avtcli.errors import AvtError, nearest, shown
from avtcli.events import OnEvent, Saved
from avtcli.models.model_building import build_model, check_finite
from avtcli.models.weights import GIVE_WITH_NETWORK
from avtcli.runtime.environment import describe_environment
from avtcli.storage.checkpoints import save_checkpoint
from avtcli.storage.files import refuse_existing
from avtcli.storage.run_folders import create_run, default_folder
from avtcli.storage.torch_files import is_plain, read_torch

HEADS: Final = {"fc": "objective.decoder.mean_head", "fc2": "objective.decoder.log_var_head"}
"""The modules of the published decoder, and ours."""


@dataclass(frozen=True)
class PublishedFile:
    """Content of a published file."""

    path: Path
    layout: str  # state_dict (CIFAR: tensors by name, `module.` before each) or epoch_and_network (ImageNet)
    epoch: int | None  # the stated one
    tensors: dict[str, Tensor]  # by published name, without `module.`


@dataclass(frozen=True)
class ImportResult:
    """Result of `avt import`, with published names."""

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
        file: a file that torch.save wrote.
        backbone: its backbone, such as nin; left out, the names in the file decide.
        out: the run folder; left out, runs/DATE-import-BACKBONE-OBJECTIVE.
        on_event: receives `Saved`.

    Raises:
        AvtError: if the file is damaged, holds more than tensors and plain values, or is of another network.
        RunFailedError: if the disk fails.
    """
    if out is not None:
        refuse_existing(out)
    published = read_published(file)
    networks: dict[str, PublishedCheckpoint] = registry.provided("published_checkpoint")
    name = backbone or _guess_backbone(published, networks)
    if name not in networks:
        known = ", ".join(networks)
        raise AvtError(f"No published checkpoint of '{name}' is known. {nearest(name, networks)}Known: {known}.")
    config = resolve({}, recipe=networks[name].recipe)
    components = {kind: getattr(config, kind) for kind in ("backbone", "objective", "transform")}
    mean, std, side = config.dataset.options["mean"], config.dataset.options["std"], config.augment.crop
    spec = ModelSpec(**components, channels=len(mean), size=(side, side), mean=mean, std=std)
    with torch.device("meta"):  # names and shapes alone
        net = build_model(spec)
    tensors = _rename(published, name, networks[name], net.state_dict())
    spec = spec.model_copy(update={"noise_scale": net.encoder.noise_scale})
    run = out or default_folder("import", name, config.objective.name)
    plugins = [(kind, getattr(config, kind).name) for kind in plugin_fields(PretrainConfig)]
    environment = describe_environment(device="cpu", processes=1, plugins=plugins, data_fingerprint=UNKNOWN)
    create_run(run, to_toml(config), environment)
    about = {
        "config": config.model_dump(mode="json", exclude_none=True),
        "model": spec.model_dump(mode="json", exclude_none=True),
        "environment": environment,
        "imported": {"file": file.name, "layout": published.layout, "epoch": published.epoch},
    }
    try:
        on_event(Saved(save_checkpoint(run / "checkpoints", published.epoch or 0, model=tensors, state={}, about=about)))
    except BaseException:  # a full disk, or a signal: a run without weights is of no use
        shutil.rmtree(run, ignore_errors=True)
        raise
    return ImportResult(str(run), name, published.layout, list(published.tensors), [], [], published.epoch)


def read_published(file: Path) -> PublishedFile:
    """Read a checkpoint of either layout.

    Raises:
        AvtError: if it is neither, damaged, or holds more than tensors and plain values.
    """
    content = read_torch(file)
    layout, epoch, tensors = "state_dict", None, content
    if isinstance(content, Mapping) and isinstance(content.get("network"), Mapping):
        layout, epoch, tensors = "epoch_and_network", content.get("epoch"), content["network"]
        if type(epoch) is not int or not 0 <= epoch < 10**10:
            raise AvtError(f"{file} states the epoch {shown(epoch)}, expected an integer of 0 or more, at most 10 digits.")
    named = tensors.items() if isinstance(tensors, Mapping) else ()
    if not named or not all(isinstance(name, str) and len(name) <= 1000 and is_plain(tensor) for name, tensor in named):
        found = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            found = f"a dict of {', '.join(shown(key) for key in list(content)[:5]) or 'nothing'}"
        raise AvtError(
            f"{file} holds {found}, expected tensors by name, or a dict of 'epoch' and 'network'. {GIVE_WITH_NETWORK}"
        )
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    return PublishedFile(file, layout, epoch, {name.removeprefix(prefix): tensor for name, tensor in named})


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _guess_backbone(published: PublishedFile, networks: Mapping[str, PublishedCheckpoint]) -> str:
    for name, network in networks.items():
        if any(_module_of(key) in network.modules for key in published.tensors):
            return name
    unexpected = next((key for key in published.tensors if _module_of(key) not in HEADS), "none")
    missing = " or ".join(f"{next(iter(network.modules))}.weight ({name})" for name, network in networks.items())
    raise AvtError(
        f"{published.path} is of another network than {' or '.join(networks)} (the first unexpected: {unexpected}; the "
        f"first missing: {missing}). {GIVE_WITH_NETWORK}"
    )


def _rename(
    published: PublishedFile, backbone: str, network: PublishedCheckpoint, own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors under our names, each checked against our own."""
    theirs = {ours: theirs for theirs, ours in {**network.modules, **HEADS}.items()}
    expected = {f"{theirs[_module_of(name)]}.{name.rpartition('.')[2]}": name for name in own}
    missing = [name for name in expected if name not in published.tensors]
    unexpected = [name for name in published.tensors if name not in expected]
    if missing or unexpected:
        raise AvtError(
            f"{published.path} holds no complete '{backbone}': of {len(expected)} names {len(missing)} are missing (first: "
            f"{next(iter(missing), 'none')}), {len(unexpected)} are unexpected (first: {next(iter(unexpected), 'none')})."
        )
    out = {}
    for name, ours in expected.items():
        tensor, like = published.tensors[name], own[ours]
        if tensor.shape != like.shape or tensor.is_floating_point() != like.is_floating_point():
            found, wanted = (f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for t in (tensor, like))
            raise AvtError(f"{published.path} holds another '{backbone}': {name} is {found}, expected {wanted}.")
        out[ours] = tensor.detach().to(like.dtype)
    check_finite(out, own, path=published.path)
    return out
