"""Load weights and models from run folders, checkpoints and exported files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save
from torch import Tensor

from avtcli.config.model_spec import ModelSpec
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import validate
from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent, ignore
from avtcli.models.encoder import Encoder
from avtcli.models.model_building import build_encoder, build_model, load_weights
from avtcli.models.siamese import SiameseModel
from avtcli.storage.checkpoints import load_checkpoint, load_newest, separate_tensors, step_of, went_further
from avtcli.storage.files import to_metadata
from avtcli.storage.metrics_log import MetricsLog
from avtcli.storage.run_folders import find_run, is_run, names_newest
from avtcli.storage.tensor_files import read_tensors

PRETRAINED = "pretrained"
"""The option of a backbone that asks for published weights; it is not stored with weights."""
GIVE_WITH_NETWORK: Final = "Weights of another library: `--backbone NAME --init-from FILE` names their network."


@dataclass(frozen=True)
class Weights:
    """Loaded weights and the specification of their network, with stored facts (`about`) such as step and config.

    `path` is the run folder, checkpoint folder or file; `run` the run folder, or none for a file, whose tensors are the
    encoder's alone.
    """

    path: Path
    run: Path | None
    spec: ModelSpec
    tensors: dict[str, Tensor]
    about: dict[str, Any]

    @property
    def config(self) -> PretrainConfig | None:
        """The settings of the pretraining run, where known."""
        settings = self.about.get("config")
        if not isinstance(settings, dict | None):
            raise AvtError(f"{self.path} states no settings: 'config' is a {type(settings).__name__}.")
        return None if settings is None else validate(PretrainConfig, settings, where=str(self.path))

    @property
    def step(self) -> int | None:
        """The training step that the weights were saved after; none for a backbone by name."""
        step = self.about.get("step")
        return step if isinstance(step, int) else None

    def __str__(self) -> str:
        """Where the weights are from: the path, or the backbone's name, and the step."""
        return str(self.path) if self.step is None else f"{self.path}, step {self.step}"


def open_weights(run: str | Path | None, *, on_event: OnEvent = ignore) -> Weights:
    """Open a run folder, a checkpoint or an exported file, see `find_run`; the newest run is reported.

    Raises:
        AvtError: if it does not exist, or is incomplete.
    """
    path = find_run(run)
    if names_newest(run):
        on_event(Notice(f"using the newest run, {path}"))
    if os.path.isfile(path):
        return _open_file(path)
    if not os.path.exists(path):  # also for a name that no file has
        raise AvtError(f"There is no run folder, checkpoint or file {path}. `avt runs` lists the runs in a folder.")
    if is_run(path):
        checkpoint, folder = load_newest(path / "checkpoints", on_event=on_event), path
        if not checkpoint.about["step"] and (went_further(path / "checkpoints") or MetricsLog(path / "metrics.jsonl").read()):
            raise AvtError(
                f"{path} was trained, and its only complete checkpoint is of step 0. Wait for the next one, or name "
                f"{checkpoint.folder}."
            )
    elif step_of(path) is not None:
        checkpoint, folder = load_checkpoint(path), path.parent.parent
    else:
        raise AvtError(f"{path} is no run folder (it has no folder `checkpoints`) and no checkpoint (step-N).")
    return Weights(path, folder, _read_spec(checkpoint.about["model"], path), checkpoint.model, checkpoint.about)


def _read_spec(stated: Any, path: Path) -> ModelSpec:
    """Check a stored specification; one that asks for published weights is refused, since opening a file downloads nothing."""
    if not isinstance(stated, dict):
        raise AvtError(f"{path} does not say which network its weights are for: 'model' is a {type(stated).__name__}.")
    spec = validate(ModelSpec, stated, where=str(path))
    if PRETRAINED in spec.backbone.options:
        raise AvtError(
            f"{path} asks for published weights, which opening a file never downloads. Give `--backbone NAME "
            f"-o backbone.{PRETRAINED}=true` instead."
        )
    return spec


def _open_file(path: Path) -> Weights:
    if path.suffix != ".safetensors":
        raise AvtError(
            f"{path} is no safetensors file, and nothing else is read here. An export in another format is loaded by the lines "
            f"of its model card. {GIVE_WITH_NETWORK} A checkpoint of the release: `avt import`."
        )
    file = read_tensors(path)
    if file.about is None or "model" not in file.about:
        raise AvtError(
            f"{path} was not written by `avt export`: it does not say which backbone its weights are for. {GIVE_WITH_NETWORK}"
        )
    return Weights(path, None, _read_spec(file.about["model"], path), file.tensors, file.about)


def restore_encoder(source: Weights) -> Encoder:
    """Build the encoder with its weights, in eval mode, on the CPU."""
    tensors = source.tensors
    if source.run is not None:
        tensors = {n.removeprefix("encoder."): t for n, t in tensors.items() if n.startswith("encoder.")}
    encoder = build_encoder(source.spec, weights=tensors)
    load_weights(encoder, tensors, path=source.path)
    return encoder.eval()


def restore_bare(tensors: dict[str, Tensor], about: Mapping[str, Any], *, path: Path) -> Encoder:
    """Build the encoder, without log-variance branch, of weights in the names of `Encoder.backbone_model`."""
    spec = _read_spec(about["model"], path).model_copy(update={"noise_scale": 0.0})
    encoder = build_encoder(spec, weights=tensors)
    load_weights(encoder.backbone_model, tensors, path=path)
    return encoder.eval()


def restore_model(source: Weights) -> SiameseModel:
    """Build encoder and decoder with their weights, in eval mode, on the CPU.

    Raises:
        AvtError: for an exported file, which holds no decoder.
    """
    if source.run is None:
        raise AvtError(f"{source.path} holds an encoder only. Name the run folder, or use load_encoder.")
    model = build_model(source.spec, weights=source.tensors)
    load_weights(model, source.tensors, path=source.path)
    return model.eval()


def save_encoder(encoder: Encoder, path: Path, about: Mapping[str, Any]) -> None:
    """Write an encoder's weights to a file that `open_weights` reads; `about["model"]` is its specification."""
    path.write_bytes(save(separate_tensors(encoder.state_dict()), metadata=to_metadata(about)))
