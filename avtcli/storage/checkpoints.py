"""Checkpoints: safetensors and JSON, complete or absent, verified when read.

    checkpoints/.tmp-STEP-RANDOM/    being written
    checkpoints/step-0000001200/     complete: model.safetensors  state.safetensors  state.json  manifest.json

The order is: write and fsync each file, the manifest with their sizes and hashes last, fsync the folder, rename, fsync the
parent, and only then prune. So a kill at any instant leaves the old checkpoints or the new one too, never half of one.
"""

import hashlib
import json
import os
import re
import shutil
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
    """What a checkpoint holds.

    Attributes:
        folder: where it lies.
        model: the model's tensors by name.
        state: the optimiser's tensors by name.
        about: step, settings and whatever else is plain JSON.
    """

    folder: Path
    model: dict[str, Tensor]
    state: dict[str, Tensor]
    about: dict[str, Any]


def step_of(folder: Path) -> int | None:
    """The step that a folder's name states, or none where it is no checkpoint's name."""
    match = re.fullmatch(r"step-(\d+)", folder.name)
    return int(match[1]) if match else None


def list_checkpoints(root: Path) -> list[Path]:
    """The folders under `root` that are named like checkpoints, newest first, whether valid or not."""
    found = [(step, folder) for folder in root.glob("step-*") if (step := step_of(folder)) is not None and folder.is_dir()]
    return [folder for _, folder in sorted(found, reverse=True)]


def save_checkpoint(
    root: Path, step: int, *, model: dict[str, Tensor], state: dict[str, Tensor], about: dict[str, Any]
) -> Path:
    """Write a checkpoint and prune older ones.

    Args:
        root: the run's checkpoints folder, which exists.
        step: optimiser steps done.
        model: the model's tensors.
        state: the optimiser's tensors.
        about: plain JSON.

    Returns:
        The checkpoint's folder; if the step was saved before, that one.

    Raises:
        RunFailedError: if the disk fails; what was there before is intact.
    """
    final = root / f"step-{step:010d}"
    if final.exists():
        return final
    beside = root / f".tmp-{step:010d}-{uuid4().hex[:8]}"
    with disk_errors_explained(final):
        try:
            beside.mkdir()
            write_synced(beside / "state.json", to_json({"format": FORMAT, "step": step, **about}))
            for name, tensors in (("model.safetensors", model), ("state.safetensors", state)):
                _write_tensors(beside / name, tensors, mode=(beside / "state.json").stat().st_mode)
            write_synced(beside / "manifest.json", to_json({name: _stated(beside / name) for name in _FILES}))
            fsync_folder(beside)
            os.rename(beside, final)
            fsync_folder(root)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    for old in list_checkpoints(root)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)  # a folder that cannot be deleted must not stop the training
    return final


def _write_tensors(path: Path, tensors: dict[str, Tensor], *, mode: int) -> None:
    """Write without a copy in memory, which a large model would double, and wait until it is on disk."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except safetensors.SafetensorError as error:  # a full disk, told in its own way
        raise OSError(str(error)) from error
    path.chmod(mode)  # safetensors leaves 0600 whatever the umask
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _stated(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def clear_leftovers(root: Path) -> None:
    """Delete what a killed writer left behind; only for the holder of the run's lock."""
    for folder in root.glob(".tmp-*"):
        shutil.rmtree(folder, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint and verify every byte of it: what is hashed is what is parsed.

    Raises:
        AvtError: naming the first file that is missing, cut short, changed or of another format.
    """
    manifest = _parse_json(folder / "manifest.json")
    blobs: dict[str, bytes] = {}
    for name in _FILES:
        path = folder / name
        blob = _read(path)
        stated = manifest.get(name)
        if not isinstance(stated, dict) or stated.get("size") != len(blob):
            raise AvtError(
                f"{path} has {len(blob)} bytes, its manifest says {stated and stated.get('size')}: it was cut short."
            )
        if stated.get("sha256") != hashlib.sha256(blob).hexdigest():
            raise AvtError(f"{path} is not what was saved: its hash differs from the manifest's.")
        blobs[name] = blob
    about = json.loads(blobs["state.json"])
    if about.get("format") != FORMAT:
        raise AvtError(f"{folder} has checkpoint format {about.get('format')}, this avt reads format {FORMAT}.")
    try:
        return Checkpoint(folder, load(blobs["model.safetensors"]), load(blobs["state.safetensors"]), about)
    except safetensors.SafetensorError as error:
        raise AvtError(f"{folder} does not parse: {error}.") from error


def load_newest(root: Path, *, on_event: OnEvent = ignore) -> Checkpoint:
    """Read the newest checkpoint that is whole, saying which newer ones were passed over and why.

    Raises:
        AvtError: if none is whole.
    """
    problems = []
    for folder in list_checkpoints(root):
        try:
            return load_checkpoint(folder)
        except AvtError as error:
            problems.append(str(error))
            on_event(Notice(f"passing over {folder.name}: {error}"))
    found = f"each of {len(problems)} is damaged, the newest: {problems[0]}" if problems else "there is none"
    raise AvtError(f"{root} has no whole checkpoint: {found}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AvtError(f"{path} cannot be read: {error.strerror}. The checkpoint is not whole.") from error


def _parse_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AvtError(f"{path} is no JSON: {error}. The checkpoint is not whole.") from error
    if not isinstance(content, dict):
        raise AvtError(f"{path} is no JSON object. The checkpoint is not whole.")
    return content
