"""Fashion-MNIST and MNIST from their IDX files, and a small embedded part of the first."""

import gzip
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from avtcli.contracts import ImageData, Notify
from avtcli.errors import AvtError
from avtplugins.datasets._files import download, first_with_files, memory_data, missing_data, require_files, silent

CLASSES: Final = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FILES: Final = tuple(f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
LAYOUT: Final = f"the four files {FILES[0]} ... {FILES[-1]}"
DEBIAN: Final = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist
PADDING: Final = 2  # 28 px -> 32 px

# of the 60 000 training images in [0, 1], padded to 32 px: of Fashion-MNIST, and of MNIST
MEAN: Final = (0.2190,)
STD: Final = (0.3318,)
MNIST_MEAN: Final = (0.1000,)
MNIST_STD: Final = (0.2752,)


def read_idx(path: Path, *, dimensions: int) -> Tensor:
    """Read a gzipped IDX file of bytes: uint8, of the shape in its header.

    Raises:
        AvtError: if it is no such file of that number of dimensions, or incomplete.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise AvtError(f"{path} is no complete gzip file: {error}. Copy it again.") from error
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
        raise AvtError(f"{path} is no IDX file of bytes with {dimensions} dimensions. Copy it again.")
    shape = [int(n) for n in np.frombuffer(content, ">i4", dimensions, offset=4)]
    if len(content) - header != int(np.prod(shape)):
        raise AvtError(f"{path} holds {len(content) - header} bytes, its header states {shape}. Copy it again.")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def _read(folder: Path, *, mean: tuple[float] = MEAN, std: tuple[float] = STD, classes: tuple[str, ...] = CLASSES) -> ImageData:
    splits = []
    for part in ("train", "t10k"):
        images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", dimensions=3)
        labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz", dimensions=1).long()
        if len(images) != len(labels) or images.shape[1:] != (28, 28):
            raise AvtError(f"{folder} has {part} images {tuple(images.shape)} and {len(labels)} labels, expected (n, 28, 28).")
        splits.append((functional.pad(images, [PADDING] * 4)[:, None], labels))
    return memory_data(*splits, mean=mean, std=std, classes=classes)


def _find(name: str, torchvision: str, path: Path | None, data_dir: Path, found: Path | None, notify: Notify) -> Path:
    """Return the folder with the four files, which torchvision downloads where there are none."""
    if found is not None:
        require_files(name, found, FILES)
        return found
    if path:
        raise missing_data(name, where=path, layout=LAYOUT)

    def fetch() -> None:
        from torchvision import datasets

        getattr(datasets, torchvision)(str(data_dir), download=True)

    download(name, fetch, where=data_dir, layout=LAYOUT, notify=notify)
    return data_dir / torchvision / "raw"


def fashion_mini() -> ImageData:
    """2 000 + 1 000 real images of Fashion-MNIST, balanced over its ten classes, padded to 32 px; comes with avt."""
    return _read(Path(__file__).parent / "fashion_mini")


def fashion_mnist_folder(data_dir: Path) -> Path | None:
    """Find the folder of Fashion-MNIST's files: downloaded, copied, or Debian's."""
    return first_with_files((data_dir / "FashionMNIST" / "raw", data_dir / "fashion-mnist", data_dir, DEBIAN), FILES)


def mnist_folder(data_dir: Path) -> Path | None:
    """Find the folder of MNIST's files: downloaded or copied."""
    return first_with_files((data_dir / "MNIST" / "raw", data_dir / "mnist"), FILES)


def fashion_mnist(path: Path | None = None, /, *, data_dir: Path, notify: Notify = silent) -> ImageData:
    """Fashion-MNIST: 60 000 + 10 000 grey images of 28 px, padded to 32, in ten classes; downloaded where it is missing.

    Args:
        path: a folder with the four IDX .gz files, such as Debian's /usr/share/datasets/fashion-mnist.
        data_dir: the folder that is searched, and downloaded to, without a path.
        notify: receives a line of text when something is downloaded.
    """
    found = first_with_files([path], FILES) if path else fashion_mnist_folder(data_dir)
    return _read(_find("fashion-mnist", "FashionMNIST", path, data_dir, found, notify))


def mnist(path: Path | None = None, /, *, data_dir: Path, notify: Notify = silent) -> ImageData:
    """MNIST: 60 000 + 10 000 grey digits of 28 px, padded to 32, in ten classes; downloaded where it is missing.

    Args:
        path: a folder with the four IDX .gz files.
        data_dir: the folder that is searched, and downloaded to, without a path.
        notify: receives a line of text when something is downloaded.
    """
    digits = tuple(map(str, range(10)))
    found = first_with_files([path], FILES) if path else mnist_folder(data_dir)
    return _read(_find("mnist", "MNIST", path, data_dir, found, notify), mean=MNIST_MEAN, std=MNIST_STD, classes=digits)
