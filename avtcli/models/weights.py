"""Load weights and models from run folders, checkpoints and exported files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load, save
from torch import Tensor

from avtcli.config.model_spec import ModelSpec
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import validate
from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent, ignore
from avtcli.models.encoder import Encoder
from avtcli.models.model_building import build_encoder, build_model, load_weights
from avtcli.models.siamese import SiameseModel
from avtcli.storage.checkpoints import load_checkpoint, load_newest, separate_tensors, step_of
from avtcli.storage.files import from_metadata, to_metadata
from avtcli.storage.run_folders import is_run, newest_run


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
    """Open a run folder, a checkpoint or an exported file; none takes the newest run under ./runs and reports it.

    Raises:
        AvtError: if it does not exist, or is incomplete.
    """
    path = newest_run() if run is None else Path(run)
    if run is None:
        on_event(Notice(f"using the newest run, {path}"))
    if path.is_file():
        return _open_file(path)
    if not path.exists():
        raise AvtError(f"There is no run folder, checkpoint or file {path}.")
    if is_run(path):
        checkpoint, folder = load_newest(path / "checkpoints", on_event=on_event), path
    elif step_of(path) is not None:
        checkpoint, folder = load_checkpoint(path), path.parent.parent
    else:
        raise AvtError(f"{path} is no run folder (it has no config.toml and checkpoints) and no checkpoint (step-N).")
    spec = validate(ModelSpec, checkpoint.about["model"], where=str(path))
    return Weights(path, folder, spec, checkpoint.model, checkpoint.about)


def parse_safetensors(blob: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or raise an AvtError where its content does not parse."""
    try:
        return load(blob)
    except safetensors.SafetensorError as error:
        raise AvtError(f"{path} does not parse as safetensors: {error}. Was it cut short?") from error


def _open_file(path: Path) -> Weights:
    if path.suffix != ".safetensors":
        raise AvtError(
            f"{path} is no safetensors file, and nothing else is read here. Checkpoints of the release: `avt import`."
        )
    blob = path.read_bytes()
    tensors, about = parse_safetensors(blob, path), from_metadata(blob)
    if about is None or "model" not in about:
        raise AvtError(f"{path} was not written by `avt export`: it does not say which backbone its weights are for.")
    return Weights(path, None, validate(ModelSpec, about["model"], where=str(path)), tensors, about)


def restore_encoder(source: Weights) -> Encoder:
    """Build the encoder with its weights, in eval mode, on the CPU."""
    tensors = source.tensors
    if source.run is not None:
        tensors = {n.removeprefix("encoder."): t for n, t in tensors.items() if n.startswith("encoder.")}
    encoder = build_encoder(source.spec)
    load_weights(encoder, tensors, path=source.path)
    return encoder.eval()


def restore_model(source: Weights) -> SiameseModel:
    """Build encoder and decoder with their weights, in eval mode, on the CPU.

    Raises:
        AvtError: for an exported file, which holds no decoder.
    """
    if source.run is None:
        raise AvtError(f"{source.path} holds an encoder only. Name the run folder, or use load_encoder.")
    model = build_model(source.spec)
    load_weights(model, source.tensors, path=source.path)
    return model.eval()


def load_model(run: str | Path) -> SiameseModel:
    """See `avtcli.load_model`."""
    return restore_model(open_weights(run))


def load_encoder(run: str | Path) -> Encoder:
    """See `avtcli.load_encoder`."""
    return restore_encoder(open_weights(run))


def save_encoder(encoder: Encoder, path: Path, about: Mapping[str, Any]) -> None:
    """Write an encoder's weights to a file that `open_weights` reads; `about["model"]` is its specification."""
    path.write_bytes(save(separate_tensors(encoder.state_dict()), metadata=to_metadata(about)))
