"""CIFAR-10, from the Python version of its archive."""

import codecs
import pickle
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtplugins.datasets._files import RGB, download, memory_data, missing_data, require_files

CLASSES: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN: Final = tuple(f"data_batch_{i}" for i in range(1, 6))
FOLDER: Final = "cifar-10-batches-py"
LAYOUT: Final = f"a folder {FOLDER} with data_batch_1 to data_batch_5 and test_batch"
MEAN: Final = (0.4914, 0.4822, 0.4465)
STD: Final = (0.2023, 0.1994, 0.2010)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not allowed")
    return codecs.encode(text, "latin-1")


class PlainUnpickler(pickle.Unpickler):
    """Unpickler of numpy arrays, lists, dicts, str, bytes and ints only: code in the pickle never runs.

    The allowed names are those in files of Python 2 (the published ones) and 3, with numpy 1 and 2.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Look up an allowed name; any other raises UnpicklingError."""
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return np._core.numeric._frombuffer  # type: ignore[attr-defined]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")


def read_batch(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Read one batch file: images (n, 3, 32, 32) uint8 and labels (n,) int64.

    Raises:
        AvtError: if it is no batch of CIFAR-10, is incomplete, or holds more than plain data.
    """
    try:
        with path.open("rb") as file:
            content = PlainUnpickler(file, encoding="latin1").load()
        data, labels = content["data"], torch.tensor(content["labels"], dtype=torch.int64)
        images = torch.from_numpy(np.ascontiguousarray(data, dtype=np.uint8)).view(-1, 3, 32, 32)
    except Exception as error:  # a damaged pickle can fail in any way
        raise AvtError(f"{path} is no batch of CIFAR-10: {type(error).__name__}: {error}. Copy the file again.") from error
    if data.dtype != np.uint8 or len(images) != len(labels):
        raise AvtError(f"{path} holds {len(images)} images of type {data.dtype} and {len(labels)} labels, expected uint8.")
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) <= 9):
        raise AvtError(f"{path} has labels from {int(labels.min())} to {int(labels.max())}, expected 0 to 9.")
    return images, labels


def cifar10_folder(data_dir: Path) -> Path | None:
    """Find the folder of CIFAR-10's batches, at or below a folder."""
    files = (*TRAIN, "test_batch")
    return next((folder for folder in (data_dir / FOLDER, data_dir) if any((folder / file).exists() for file in files)), None)


def _find(path: Path | None, data_dir: Path) -> Path:
    root = path or data_dir
    found = cifar10_folder(root)
    if found is not None:
        return found
    if path:
        raise missing_data("cifar10", where=root, layout=LAYOUT)

    def fetch() -> None:
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import download_and_extract_archive

        # CIFAR10(download=True) would unpickle without restrictions
        download_and_extract_archive(CIFAR10.url, str(root), filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)

    download("cifar10", fetch, where=root, layout=LAYOUT)
    return root / FOLDER


def cifar10(path: Path | None = None, /, *, data_dir: Path, mean: RGB = MEAN, std: RGB = STD) -> ImageData:
    """CIFAR-10: 50 000 + 10 000 images of 32 px in ten classes; downloaded by torchvision where it is missing.

    Args:
        path: the folder with the batches, or the one above it.
        data_dir: the folder that is searched, and downloaded to, without a path.
        mean: per channel, for normalisation (as in the release).
        std: per channel, for normalisation (as in the release).
    """
    folder = _find(path, data_dir)
    require_files("cifar10", folder, (*TRAIN, "test_batch"))
    images, labels = zip(*(read_batch(folder / name) for name in TRAIN), strict=True)
    train, test = (torch.cat(images), torch.cat(labels)), read_batch(folder / "test_batch")
    return memory_data(train, test, mean=mean, std=std, classes=CLASSES)
