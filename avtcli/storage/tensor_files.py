"""Safetensors files: the header is checked against the file's size before anything of that size is read or allocated."""

import io
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

import safetensors
from safetensors.torch import load
from torch import Tensor

from avtcli.errors import AvtError
from avtcli.input_files import TEXT_BYTES, open_regular, parse_json_object
from avtcli.storage.files import METADATA_KEY

MAX_TENSORS: Final = 20_000
MAX_DIMENSIONS: Final = 16
MAX_NAME: Final = 1000  # characters
ITEM_BYTES: Final = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2},
    **{"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8},
}
"""Bytes of an element by dtype."""


@dataclass(frozen=True)
class TensorFile:
    """Content of a safetensors file: its tensors by name, and the JSON object that we stored with them, if any."""

    tensors: dict[str, Tensor]
    about: dict[str, Any] | None


def read_tensors(path: Path, *, hint: str = "Was it cut short?") -> TensorFile:
    """Read a safetensors file.

    Raises:
        AvtError: with the cause and the hint, where it cannot be read or does not parse.
    """
    with open_regular(path, hint=hint) as file:
        about = _check_header(file, os.fstat(file.fileno()).st_size, path, hint)
        file.seek(0)
        blob = file.read()
    return TensorFile(_load(blob, path, hint), about)


def parse_tensors(blob: bytes, path: Path, *, hint: str = "Was it cut short?") -> TensorFile:
    """Parse a safetensors file that was read already; see `read_tensors`."""
    about = _check_header(io.BytesIO(blob), len(blob), path, hint)
    return TensorFile(_load(blob, path, hint), about)


def _load(blob: bytes, path: Path, hint: str) -> dict[str, Tensor]:
    try:
        return load(blob)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise AvtError(f"{path} does not parse as safetensors: {error}. {hint}") from error


def _check_header(file: BinaryIO, size: int, path: Path, hint: str) -> dict[str, Any] | None:
    """Check that a file of a size in bytes holds the tensors that its header states; return the stored JSON object, if any."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, TEXT_BYTES):
        stated = f"its header states {length} bytes" if size >= 8 else "it has no header"
        raise AvtError(f"{path} does not parse as safetensors: {stated}, the file has {size}. {hint}")
    header = parse_json_object(file.read(length), f"The header of {path}", hint=f"It does not parse as safetensors. {hint}")
    metadata = header.pop("__metadata__", {})
    problem = _problem(header, metadata, size - 8 - length)
    if problem:
        raise AvtError(f"{path} does not parse as safetensors: {problem}. {hint}")
    text = metadata.get(METADATA_KEY)
    return None if text is None else parse_json_object(text, f"The metadata of {path}")


def _problem(header: dict[str, Any], metadata: Any, size: int) -> str | None:
    """Why a header does not describe data of a size in bytes, or none."""
    if len(header) > MAX_TENSORS:
        return f"it has {len(header)} tensors, at most {MAX_TENSORS} are read"
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        return "its metadata are no texts by name"
    spans = []
    for name, stated in header.items():
        span = _span(stated) if len(name) <= MAX_NAME else None
        if span is None:
            return f"dtype, shape and offsets of its tensor '{name[:MAX_NAME]}' do not agree"
        spans.append(span)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            return f"its tensors overlap or leave a gap at byte {end} of the data"
        end = stop
    return None if end == size else f"its tensors take {end} bytes, the file has {size} of them"


def _span(stated: Any) -> tuple[int, int] | None:
    """The offsets of a tensor, or none where they do not agree with dtype and shape."""
    if not isinstance(stated, dict) or set(stated) != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, offsets = stated["dtype"], stated["shape"], stated["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES or not _naturals(shape) or not _naturals(offsets):
        return None
    item = ITEM_BYTES[dtype]
    too_large = len(shape) > MAX_DIMENSIONS or prod(max(1, side) for side in shape) * item >= 2**63
    if too_large or len(offsets) != 2 or offsets[1] - offsets[0] != prod(shape) * item:
        return None
    return offsets[0], offsets[1]


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
