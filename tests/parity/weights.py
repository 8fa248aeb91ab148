"""The formula by which the golden numbers' weights and inputs are filled, so that none need be stored."""

import json
import zlib
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"


def load_golden(name: str) -> Any:
    """Read one of the JSON files."""
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def filled(key: str, shape: list[int], *, salt: int = 0) -> Tensor:
    """The tensor that the release's state-dict name `key` stands for, float32 (a count: int64).

    All of it is worked out in float64 and rounded once: rounding the sine first moves the training losses by 5e-6.
    """
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    wave = np.sin(0.37 * np.arange(prod(shape)) + zlib.crc32(key.encode()) % 1000 + salt).reshape(shape)
    if len(shape) >= 2:
        wave *= sqrt(2 / prod(shape[1:]))
    else:
        wave *= 0.1
        wave += key.endswith(("running_var", "weight"))
    return torch.from_numpy(wave.astype(np.float32))


def released_state_dict(backbone: str) -> dict[str, Tensor]:
    """The filled weights of one of the release's networks, under the release's names."""
    keys: dict[str, list[int]] = load_golden("networks.json")[backbone]["keys"]
    return {key: filled(key, shape) for key, shape in keys.items()}


def image_pair(batch: int, side: int, *, salt: int = 0) -> tuple[Tensor, Tensor]:
    """Two batches of images, (batch, 3, side, side), float32."""
    b, c, i, j = np.ogrid[:batch, :3, :side, :side]
    angle = 0.1 * (1.3 * i + 0.7 * j) + c + 2 * b + salt
    return torch.from_numpy(np.sin(angle)).float(), torch.from_numpy(np.cos(angle)).float()


def target(batch: int, *, salt: int = 0) -> Tensor:
    """Normalised targets, (batch, 8), float32."""
    return torch.from_numpy(np.sin(0.7 * np.arange(8 * batch) + salt)).float().reshape(batch, 8)
