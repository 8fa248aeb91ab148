"""What tests call: a tiny run, small data in the published layouts, and how a command ended."""

import gzip
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import resolve, resolve_probe
from avtcli.events import Event, OnEvent, ignore
from avtcli.models.weights import Weights
from avtcli.probing.probe import ProbeResult, probe
from avtcli.training.pretrain import pretrain

TINY: dict[str, Any] = {"backbone": {"width": 0.05}, "limit_train": 40, "batch_size": 16, "epochs": 3, "eval_every": 0}
"""Three epochs of three steps, the last of each with 8 images."""


class Result:
    """How a command ended."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


def write_cifar10(folder: Path, *, per_batch: int = 12, seed: int = 0) -> Path:
    """Write data in CIFAR-10's layout: the pickles of protocol 2 that the published archive holds."""
    generator = np.random.default_rng(seed)
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {
            "batch_label": name,
            "labels": [i % 10 for i in range(per_batch)],
            "data": generator.integers(0, 256, (per_batch, 3072), dtype=np.uint8),
            "filenames": [f"{name}_{i}.png" for i in range(per_batch)],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def write_cifar100(folder: Path, *, count: int = 20) -> Path:
    """Write data in CIFAR-100's layout; image i is of grey level i, of class 5 i."""
    folder = folder / "cifar-100-python"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        pixels = np.repeat(np.arange(count, dtype=np.uint8)[:, None], 3072, 1)
        labels = {"fine_labels": [5 * i % 100 for i in range(count)], "coarse_labels": [0] * count}
        (folder / name).write_bytes(pickle.dumps({"data": pixels, **labels}, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}, protocol=2))
    return folder


def write_stl10(folder: Path) -> Path:
    """Write data in STL-10's layout: images (n, 3, column, row), labels from 1."""
    folder = folder / "stl10_binary"
    folder.mkdir(parents=True)
    for seed, (part, count) in enumerate((("train", 6), ("test", 4), ("unlabeled", 9))):
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        pixels.tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            (np.arange(count, dtype=np.uint8) % 10 + 1).tofile(folder / f"{part}_y.bin")
    return folder


def write_svhn(folder: Path) -> Path:
    """Write data in SVHN's layout: images (row, column, 3, n), labels from 1, 10 for the digit 0."""
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    for seed, part in enumerate(("train", "test")):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
        labels = np.arange(1, 13, dtype=np.uint8)[:, None]
        savemat(folder / f"{part}_32x32.mat", {"X": pixels, "y": (labels - 1) % 10 + 1}, do_compression=True)
    return folder


def write_idx(folder: Path, *, train: int = 6, test: int = 4) -> Path:
    """Write data in Fashion-MNIST's layout: gzipped IDX files of 28x28 px."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        images = np.arange(count * 784, dtype=np.uint32).astype(np.uint8)
        header = struct.pack(">4i", 2051, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        labels = struct.pack(">2i", 2049, count) + bytes(i % 10 for i in range(count))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return folder


def tiny_config(**over: Any) -> PretrainConfig:
    return resolve({**TINY, **over}, recipe=None)


def run_tiny(folder: Path, *, resume: bool = False, on_event: Callable[[Event], None] | None = None, **over: Any) -> Path:
    """Pretrain a tiny network for nine steps."""
    pretrain(tiny_config(**over), run=folder, resume=resume, on_event=on_event or (lambda event: None))
    return folder


def run_probe(source: Weights | Path | None, *, on_event: OnEvent = ignore, **settings: Any) -> ProbeResult:
    return probe(source, resolve_probe(settings, recipe=None), out=None, on_event=on_event)
