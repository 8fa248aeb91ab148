"""Checkpoints: safetensors and JSON, complete or absent, verified when read.

    checkpoints/.tmp-STEP-RANDOM/    being written
    checkpoints/step-0000001200/     complete: model.safetensors  state.safetensors  state.json  manifest.json

Order: write and fsync each file, the manifest with sizes and hashes last; fsync the folder; rename; fsync the parent; prune.
So a kill at any time leaves complete checkpoints only.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from avtcli.errors import AvtError, shown
from avtcli.events import Notice, OnEvent, ignore
from avtcli.input_files import parse_json_object, read_bytes
from avtcli.storage.files import disk_errors_explained, fsync_folder, to_json, write_synced
from avtcli.storage.tensor_files import parse_tensors

FORMAT: Final = 1
KEPT: Final = 2
_FILES: Final = ("model.safetensors", "state.safetensors", "state.json")
_STATED: Final[Mapping[str, Any]] = {
    **{"step": int, "config": dict, "model": dict, "environment": dict},
    **{"param_groups": list, "scaler": (dict, type(None)), "seconds": (int, float)},
}
"""The types of the values in state.json that are read here."""


class _State(dict[str, Any]):
    """What state.json holds; a value that it lacks is an `AvtError` for whoever asks."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        super().__init__(values)
        self.path = path
        for name, kinds in _STATED.items():
            if name in self and not isinstance(self[name], kinds):
                raise AvtError(f"{path} is no state of a run: '{name}' is {shown(self[name])}. The checkpoint is damaged.")
        if self["step"] < 0 or not isinstance(self.get("environment", {}).get("data_fingerprint", ""), str):
            raise AvtError(
                f"{path} is no state of a run: its step or data fingerprint is not right. The checkpoint is damaged."
            )

    def __missing__(self, name: str) -> Any:
        raise AvtError(f"{self.path} is no state of a run: there is no '{name}'. The checkpoint is damaged.")


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint: the tensors of model and optimiser by name, and step, settings and other JSON values."""

    folder: Path
    model: dict[str, Tensor]
    state: dict[str, Tensor]
    about: dict[str, Any]


def step_of(folder: Path) -> int | None:
    """Parse the step from a folder's name; none if it is not named like a checkpoint."""
    match = re.fullmatch(r"step-(\d+)", folder.name)
    return int(match[1]) if match else None


def list_checkpoints(root: Path) -> list[Path]:
    """List the folders named like checkpoints, valid or not, newest first."""
    found = [(step, folder) for folder in root.glob("step-*") if (step := step_of(folder)) is not None and folder.is_dir()]
    return [folder for _, folder in sorted(found, reverse=True)]


def save_checkpoint(
    root: Path, step: int, *, model: dict[str, Tensor], state: dict[str, Tensor], about: dict[str, Any]
) -> Path:
    """Write a checkpoint, unless there is one of this step, and delete all but the newest two.

    Raises:
        RunFailedError: if writing fails; earlier checkpoints stay intact.
    """
    final = root / f"step-{step:010d}"
    if final.exists():
        return final
    partial = root / f".tmp-{step:010d}-{uuid4().hex[:8]}"
    with disk_errors_explained(final):
        try:
            partial.mkdir()
            write_synced(partial / "state.json", to_json({"format": FORMAT, "step": step, **about}))
            for name, tensors in (("model.safetensors", model), ("state.safetensors", state)):
                _write_tensors(partial / name, tensors, mode=(partial / "state.json").stat().st_mode)
            write_synced(partial / "manifest.json", to_json({name: _stated(partial / name) for name in _FILES}))
            fsync_folder(partial)
            os.rename(partial, final)
            fsync_folder(root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    for old in list_checkpoints(root)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)  # a folder that cannot be deleted must not stop the training
    return final


def _write_tensors(path: Path, tensors: dict[str, Tensor], *, mode: int) -> None:
    """Write without serialising in memory, which would double a large model's, and wait until it is on disk."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except safetensors.SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from error
    path.chmod(mode)  # safetensors leaves 0600 whatever the umask
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _stated(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def clear_leftovers(root: Path) -> None:
    """Delete temporary folders of killed writers; requires the run's lock."""
    for folder in root.glob(".tmp-*"):
        shutil.rmtree(folder, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint and verify every byte; an `AvtError` names the first file that is damaged or of another format."""
    blobs = dict[str, bytes]()
    manifest = _json(folder / "manifest.json", _read(folder / "manifest.json"))
    for name in _FILES:
        path, blob, stated = folder / name, _read(folder / name), manifest.get(name)  # parsed from the bytes that were hashed
        stated = stated if isinstance(stated, dict) else {}
        if stated.get("size") != len(blob):
            raise AvtError(f"{path} has {len(blob)} bytes, its manifest {stated.get('size')}: it was cut short.")
        if stated.get("sha256") != hashlib.sha256(blob).hexdigest():
            raise AvtError(f"{path} was changed: its hash differs from the manifest's.")
        blobs[name] = blob
    about = _State(_json(folder / "state.json", blobs["state.json"]), folder / "state.json")
    if about["format"] != FORMAT:
        raise AvtError(f"{folder} has checkpoint format {shown(about['format'])}, this avt reads format {FORMAT}.")
    model, state = (parse_tensors(blobs[name], folder / name).tensors for name in ("model.safetensors", "state.safetensors"))
    return Checkpoint(folder, model, state, about)


def load_newest(root: Path, *, on_event: OnEvent = ignore) -> Checkpoint:
    """Read the newest complete checkpoint, else raise an `AvtError`; a notice reports each newer damaged one."""
    problems = []
    for folder in list_checkpoints(root):
        try:
            return load_checkpoint(folder)
        except AvtError as error:
            problems.append(str(error))
            on_event(Notice(f"skipping {folder.name}: {error}"))
    found = f"each of {len(problems)} is damaged, the newest: {problems[0]}" if problems else "there is none"
    raise AvtError(f"{root} has no complete checkpoint: {found}")


def _read(path: Path) -> bytes:
    return read_bytes(path, hint="The checkpoint is incomplete.")


def _json(path: Path, content: bytes) -> dict[str, Any]:
    return parse_json_object(content, path, hint="The checkpoint is damaged.")
