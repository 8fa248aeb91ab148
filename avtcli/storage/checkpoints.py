"""Checkpoints: safetensors and JSON, complete or absent, verified when read.

    checkpoints/step-0000001200/            model.safetensors  state.safetensors  state.json  manifest.json
    checkpoints/step-0000000600.damaged/    what did not agree with its manifest, set aside and never counted

A checkpoint gets its name when it is on disk (see `files.new_path`), and only then are older ones deleted.
"""

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from avtcli.errors import AvtError, RunFailedError, shown
from avtcli.events import Notice, OnEvent, ignore
from avtcli.input_files import parse_json_object, read_bytes
from avtcli.storage.files import disk_errors_explained, new_path, temporary_folder, to_json
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
    match = re.fullmatch(r"step-([0-9]+)", folder.name)
    return int(match[1]) if match else None


def list_checkpoints(root: Path) -> list[Path]:
    """List the folders named like checkpoints, valid or not, newest first."""
    found = [(step, folder) for folder in root.glob("step-*") if (step := step_of(folder)) is not None and folder.is_dir()]
    return [folder for _, folder in sorted(found, reverse=True)]


def went_further(root: Path) -> bool:
    """Whether a run got beyond step 0, as the names of its checkpoints say, damaged ones included."""
    return any(not re.match(r"step-0+(\.|$)", folder.name) for folder in root.glob("step-*"))


def save_checkpoint(
    root: Path, step: int, *, model: dict[str, Tensor], state: dict[str, Tensor], about: dict[str, Any]
) -> Path:
    """Write a checkpoint, unless there is a complete one of this step, and delete all but the newest two complete ones.

    Raises:
        RunFailedError: if writing fails; earlier checkpoints stay intact.
    """
    final = root / f"step-{step:010d}"
    if final.exists():
        if is_complete(final):
            return final
        set_aside(final)
    with new_path(final) as partial:
        partial.mkdir()
        (partial / "state.json").write_bytes(to_json({"format": FORMAT, "step": step, **about}))
        for name, tensors in (("model.safetensors", model), ("state.safetensors", state)):
            _write_tensors(partial / name, tensors, mode=(partial / "state.json").stat().st_mode)
        (partial / "manifest.json").write_bytes(to_json({name: _measure(partial / name) for name in _FILES}))
    _prune(root, saved=final)
    return final


def _write_tensors(path: Path, tensors: dict[str, Tensor], *, mode: int) -> None:
    """Write without serialising in memory, which would double a large model's."""
    try:
        save_file(separate_tensors(tensors), path)
    except safetensors.SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from error
    path.chmod(mode)  # safetensors leaves 0600 whatever the umask


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


def _prune(root: Path, *, saved: Path) -> None:
    """Delete all but the checkpoint just saved and the newest complete other ones; what is damaged counts for none."""
    kept = [saved]
    for folder in list_checkpoints(root):
        if folder == saved:
            continue
        if len(kept) < KEPT and is_complete(folder):
            kept.append(folder)
            continue
        with contextlib.suppress(RunFailedError):  # a folder that cannot be moved must not stop the training
            _delete(folder) if len(kept) == KEPT else set_aside(folder)


def _delete(folder: Path) -> None:
    """Take the name away first: a kill between leaves a temporary folder, and no checkpoint without its files."""
    with disk_errors_explained(folder), temporary_folder(folder.parent) as leaving:
        folder.rename(leaving / folder.name)


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that it is never counted again; return its new path.

    Raises:
        RunFailedError: if the disk refuses.
    """
    names = (f"{folder.name}.damaged{number or ''}" for number in itertools.count())
    away = next(folder.with_name(name) for name in names if not os.path.lexists(folder.with_name(name)))
    with disk_errors_explained(folder):
        folder.rename(away)
    return away


def _measure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def is_complete(folder: Path) -> bool:
    """Whether every file of a checkpoint is as its manifest states, and its step is that of its name."""
    try:
        manifest = _json(folder / "manifest.json", _read(folder / "manifest.json"))
        stated = _json(folder / "state.json", _read(folder / "state.json")).get("step")
        return _is_step(stated, folder) and all(manifest.get(name) == _measure(folder / name) for name in _FILES)
    except (AvtError, OSError):
        return False


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
    if not _is_step(about["step"], folder):
        raise AvtError(
            f"{folder / 'state.json'} is of step {shown(about['step'])}, unlike its folder. The checkpoint is damaged."
        )
    model, state = (parse_tensors(blobs[name], folder / name).tensors for name in ("model.safetensors", "state.safetensors"))
    return Checkpoint(folder, model, state, about)


def _is_step(stated: Any, folder: Path) -> bool:
    return type(stated) is int and step_of(folder) in (None, stated)


def load_newest(root: Path, *, repair: bool = False, on_event: OnEvent = ignore) -> Checkpoint:
    """Read the newest complete checkpoint; a notice reports each newer damaged one.

    Args:
        root: the folder of the checkpoints.
        repair: whether damaged ones are set aside; requires the run's lock.
        on_event: receives the notices.

    Raises:
        AvtError: if none is complete.
        RunFailedError: if a damaged one cannot be set aside.
    """
    problems = []
    for folder in list_checkpoints(root):
        try:
            return load_checkpoint(folder)
        except AvtError as error:
            problems.append(str(error))
            damaged = not is_complete(folder)
            done = f"set aside as {set_aside(folder).name}" if repair and damaged else "skipped"
            on_event(Notice(f"{folder.name} is {'damaged and is ' * damaged}{done}: {error}"))
    if not problems:
        raise AvtError(f"{root} has no complete checkpoint: there is none")
    raise AvtError(
        f"{root} has no complete checkpoint, the newest: {problems[0]} Move them away, and `--resume` starts the run again at "
        "step 0."
    )


def _read(path: Path) -> bytes:
    return read_bytes(path, hint="The checkpoint is incomplete.")


def _json(path: Path, content: bytes) -> dict[str, Any]:
    return parse_json_object(content, path, hint="The checkpoint is damaged.")
