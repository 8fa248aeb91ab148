"""Files of torch.save: read as data, by the part of pickle that builds tensors and plain values; all else is refused."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avtcli.errors import AvtError
from avtcli.input_files import open_regular
from avtcli.storage.tensor_files import MAX_NAME


def read_torch(path: Path) -> Any:
    """Read what torch.save wrote: tensors and plain values, in memory no larger than the file.

    Raises:
        AvtError: if the file is damaged, compressed, or asks for anything else, before any of it is called.
    """
    with open_regular(path) as file:
        zipped = file.read(4) == b"PK\x03\x04"  # since PyTorch 1.6; only this form can be mapped into memory
    try:
        if zipped and any(part.compress_type != zipfile.ZIP_STORED for part in zipfile.ZipFile(path).infolist()):
            raise ValueError("it is compressed")
        # settings of a training script, a plain object, are in many checkpoints
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about other pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged file can raise anything
        refused = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused:
            raise AvtError(
                f"{path} asks for {refused[1]}, more than tensors and plain values; nothing in it was run. Ask its author for "
                "a plain state dict."
            ) from error
        cause = ": ".join([type(error).__name__, *str(error).split(". ")[0].splitlines()[:1]])
        raise AvtError(
            f"{path} is not a checkpoint that torch.save wrote, or is incomplete ({cause}). "
            "Give one, a file of safetensors, or download it again."
        ) from error


def is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor on the CPU."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested and value.device.type == "cpu"


def tensors_within(content: Any) -> dict[str, Tensor]:
    """Find the tensors in dicts within dicts; a name is the keys on the way, joined by dots."""
    seen: set[int] = set()  # a pickle can hold a dict within itself

    def walk(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
        if is_plain(value):
            yield name, value.detach()
        elif isinstance(value, Mapping) and id(value) not in seen:
            seen.add(id(value))
            for key, part in value.items():
                if isinstance(key, str) and len(name) + len(key) < MAX_NAME:
                    yield from walk(part, f"{name}.{key}" if name else key)

    return dict(walk(content, ""))
