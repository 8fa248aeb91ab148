"""CIFAR-10 and CIFAR-100, from the Python versions of their archives."""

import codecs
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from avtcli.contracts import ImageData, Notify
from avtcli.errors import AvtError
from avtplugins.datasets._files import RGB, download, first_with_files, memory_data, missing_data, require_files, silent

CLASSES: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN: Final = tuple(f"data_batch_{i}" for i in range(1, 6))
MEAN: Final = (0.4914, 0.4822, 0.4465)
STD: Final = (0.2023, 0.1994, 0.2010)

# of the 50 000 training images of CIFAR-100 in [0, 1], as in the code of RobustDARTS; that of TorchSSL has 129.3, 124.1, 112.4
# and 68.2, 65.4, 70.4 of 255
MEAN_100: Final = (0.5071, 0.4865, 0.4409)
STD_100: Final = (0.2673, 0.2564, 0.2762)


@dataclass(frozen=True)
class Archive:
    """Files of a published archive: its folder, what torchvision calls it, the parts, and the key of the labels."""

    name: str
    title: str
    folder: str
    torchvision: str
    train: tuple[str, ...]
    test: str
    labels: str
    n_classes: int


CIFAR10: Final = Archive("cifar10", "CIFAR-10", "cifar-10-batches-py", "CIFAR10", TRAIN, "test_batch", "labels", 10)
CIFAR100: Final = Archive("cifar100", "CIFAR-100", "cifar-100-python", "CIFAR100", ("train",), "test", "fine_labels", 100)


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


def _unpickle(path: Path, archive: Archive) -> Any:
    try:
        with path.open("rb") as file:
            return PlainUnpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise _damaged(path, archive, error) from error


def _damaged(path: Path, archive: Archive, error: Exception) -> AvtError:
    return AvtError(f"{path} is no batch of {archive.title}: {type(error).__name__}: {error}. Copy the file again.")


def read_batch(path: Path, archive: Archive) -> tuple[torch.Tensor, torch.Tensor]:
    """Read one batch file: images (n, 3, 32, 32) uint8 and labels (n,) int64.

    Raises:
        AvtError: if it is no batch of the archive, is incomplete, or holds more than plain data.
    """
    content = _unpickle(path, archive)
    try:
        data, labels = content["data"], torch.tensor(content[archive.labels], dtype=torch.int64)
        images = torch.from_numpy(np.ascontiguousarray(data, dtype=np.uint8)).view(-1, 3, 32, 32)
    except Exception as error:  # so can a strange one
        raise _damaged(path, archive, error) from error
    if data.dtype != np.uint8 or len(images) != len(labels):
        raise AvtError(f"{path} holds {len(images)} images of type {data.dtype} and {len(labels)} labels, expected uint8.")
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < archive.n_classes):
        found = f"from {int(labels.min())} to {int(labels.max())}"
        raise AvtError(f"{path} has labels {found}, expected 0 to {archive.n_classes - 1}.")
    return images, labels


def _read(
    archive: Archive,
    path: Path | None,
    data_dir: Path,
    notify: Notify,
    *,
    mean: RGB,
    std: RGB,
    classes: tuple[str, ...] | None = None,
) -> ImageData:
    folder = _find(archive, path, data_dir, notify)
    require_files(archive.name, folder, (*archive.train, archive.test))
    images, labels = zip(*(read_batch(folder / name, archive) for name in archive.train), strict=True)
    train, test = (torch.cat(images), torch.cat(labels)), read_batch(folder / archive.test, archive)
    return memory_data(train, test, mean=mean, std=std, classes=classes or _class_names(folder, archive))


def _class_names(folder: Path, archive: Archive) -> tuple[str, ...] | None:
    path = folder / "meta"
    if not path.is_file():
        return None
    names = _unpickle(path, archive)
    try:
        return tuple(str(name) for name in names["fine_label_names"])
    except (KeyError, TypeError) as error:
        raise _damaged(path, archive, error) from error


def cifar10_folder(data_dir: Path) -> Path | None:
    """Find the folder of CIFAR-10's batches, at or below a folder."""
    return _folder_in(data_dir, CIFAR10)


def cifar100_folder(data_dir: Path) -> Path | None:
    """Find the folder of CIFAR-100's files, at or below a folder."""
    return _folder_in(data_dir, CIFAR100)


def _folder_in(root: Path, archive: Archive) -> Path | None:
    return first_with_files((root / archive.folder, root), (*archive.train, archive.test))


def _find(archive: Archive, path: Path | None, data_dir: Path, notify: Notify) -> Path:
    root, layout = path or data_dir, f"{archive.folder}/{archive.train[0]} ... {archive.test}"
    found = _folder_in(root, archive)
    if found is not None:
        return found
    if path:
        raise missing_data(archive.name, where=root, layout=layout)

    def fetch() -> None:
        from torchvision import datasets
        from torchvision.datasets.utils import download_and_extract_archive

        # download=True would unpickle without restrictions
        source = getattr(datasets, archive.torchvision)
        download_and_extract_archive(source.url, str(root), filename=source.filename, md5=source.tgz_md5)

    download(archive.name, fetch, where=root, layout=layout, notify=notify)
    return root / archive.folder


def cifar10(
    path: Path | None = None, /, *, data_dir: Path, notify: Notify = silent, mean: RGB = MEAN, std: RGB = STD
) -> ImageData:
    """CIFAR-10: 50 000 + 10 000 images of 32 px in ten classes; downloaded by torchvision where it is missing.

    Args:
        path: the folder with the batches, or the one above it.
        data_dir: the folder that is searched, and downloaded to, without a path.
        notify: receives a line of text when something is downloaded.
        mean: per channel, for normalisation (as in the release).
        std: per channel, for normalisation (as in the release).
    """
    return _read(CIFAR10, path, data_dir, notify, mean=mean, std=std, classes=CLASSES)


def cifar100(
    path: Path | None = None, /, *, data_dir: Path, notify: Notify = silent, mean: RGB = MEAN_100, std: RGB = STD_100
) -> ImageData:
    """CIFAR-100: 50 000 + 10 000 images of 32 px in 100 classes; downloaded by torchvision where it is missing.

    Args:
        path: the folder with the files train and test, or the one above it.
        data_dir: the folder that is searched, and downloaded to, without a path.
        notify: receives a line of text when something is downloaded.
        mean: per channel, for normalisation (that of the training images).
        std: per channel, for normalisation (that of the training images).
    """
    return _read(CIFAR100, path, data_dir, notify, mean=mean, std=std)
