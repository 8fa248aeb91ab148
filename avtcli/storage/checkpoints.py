"""Checkpoints: safetensors and JSON, complete or absent, verified when read.

    checkpoints/.tmp-STEP-RANDOM/    being written
    checkpoints/step-0000001200/     complete: model.safetensors  state.safetensors  state.json  manifest.json

Order: write and fsync each file, the manifest with sizes and hashes last; fsync the folder; rename; fsync the parent; prune.
So a kill at any time leaves complete checkpoints only.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import safetensors
from safetensors.torch import load, save_file
from torch import Tensor

from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent, ignore
from avtcli.storage.files import disk_errors_explained, fsync_folder, to_json, write_synced

FORMAT: Final = 1
KEPT: Final = 2
_FILES: Final = ("model.safetensors", "state.safetensors", "state.json")


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
        save_file(separate_tensors(tensors), path)
    except safetensors.SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from error
    path.chmod(mode)  # safetensors leaves 0600 whatever the umask
    with path.open("rb") as file:
        os.fsync(file.fileno())


def separate_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors stores them: contiguous, on the CPU, none in the memory of another.

    Tied weights, one tensor under two names, are stored twice; loaded into a model that ties them, they are tied again.
    """
    out, taken = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        own = own.clone() if own.untyped_storage().data_ptr() in taken else own
        taken.add(own.untyped_storage().data_ptr())
        out[name] = own
    return out


def _stated(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def clear_leftovers(root: Path) -> None:
    """Delete temporary folders of killed writers; requires the run's lock."""
    for folder in root.glob(".tmp-*"):
        shutil.rmtree(folder, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint and verify every byte; an `AvtError` names the first file that is damaged or of another format."""
    try:
        manifest = dict(json.loads(_read(folder / "manifest.json")))
    except (TypeError, ValueError) as error:
        raise AvtError(f"{folder / 'manifest.json'} is no JSON object: {error}. The checkpoint is damaged.") from error
    blobs = dict[str, bytes]()
    for name in _FILES:
        path, blob = folder / name, _read(folder / name)  # parsed from the bytes that were hashed
        stated = manifest.get(name)
        if not isinstance(stated, dict) or stated.get("size") != len(blob):
            raise AvtError(f"{path} has {len(blob)} bytes, its manifest {stated and stated.get('size')}: it was cut short.")
        if stated.get("sha256") != hashlib.sha256(blob).hexdigest():
            raise AvtError(f"{path} was changed: its hash differs from the manifest's.")
        blobs[name] = blob
    about = json.loads(blobs["state.json"])
    if about.get("format") != FORMAT:
        raise AvtError(f"{folder} has checkpoint format {about.get('format')}, this avt reads format {FORMAT}.")
    try:
        return Checkpoint(folder, load(blobs["model.safetensors"]), load(blobs["state.safetensors"]), about)
    except safetensors.SafetensorError as error:
        raise AvtError(f"{folder} does not parse: {error}.") from error


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
    try:
        return path.read_bytes()
    except OSError as error:
        raise AvtError(f"{path} cannot be read: {error.strerror}. The checkpoint is incomplete.") from error
