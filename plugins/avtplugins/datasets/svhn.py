"""SVHN, from its MATLAB files of cropped digits."""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from avtcli.contracts import ImageData, Notify
from avtcli.errors import AvtError
from avtplugins.datasets._files import RGB, download, first_with_files, memory_data, missing_data, require_files, silent

FILES: Final = ("train_32x32.mat", "test_32x32.mat")
LAYOUT: Final = f"the files {' and '.join(FILES)}"

# of the 73 257 training images in [0, 1], as in the code of RobustDARTS and, with more digits, in much other public code
MEAN: Final = (0.4377, 0.4438, 0.4728)
STD: Final = (0.1980, 0.2010, 0.1970)


def read_mat(path: Path) -> tuple[Tensor, Tensor]:
    """Read one file: images (n, 3, 32, 32) uint8 and labels (n,) int64, 0 to 9; the files call the digit 0 10.

    Raises:
        AvtError: if it is no such file, or scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise AvtError("SVHN's files need scipy to be read: `pip install 'avtcli[svhn]'`.") from error
    try:
        content = loadmat(path, variable_names=["X", "y"])
        images = torch.from_numpy(content["X"]).permute(3, 2, 0, 1).contiguous()
        labels = torch.from_numpy(content["y"].astype("int64")).flatten()
    except Exception as error:  # a damaged file can fail in any way
        raise AvtError(f"{path} is no file of SVHN: {type(error).__name__}: {error}. Copy the file again.") from error
    labelled = len(labels) == len(images) and 0 < len(labels) and 1 <= int(labels.min()) and int(labels.max()) <= 10
    if images.dtype != torch.uint8 or images.shape[1:] != (3, 32, 32) or not labelled:
        raise AvtError(f"{path} holds images {tuple(images.shape)} {images.dtype} and {len(labels)} labels: copy it again.")
    return images, labels % 10


def svhn_folder(data_dir: Path) -> Path | None:
    """Find the folder of the files in the data folder."""
    return first_with_files([data_dir / "svhn"], FILES)


def svhn(
    path: Path | None = None, /, *, data_dir: Path, notify: Notify = silent, mean: RGB = MEAN, std: RGB = STD
) -> ImageData:
    """SVHN: 73 257 + 26 032 house-number digits of 32 px in ten classes; downloaded where it is missing; needs scipy.

    Args:
        path: a folder with the two .mat files.
        data_dir: parent of the folder `svhn`, which is downloaded to without a path.
        notify: receives a line of text when something is downloaded.
        mean: per channel, for normalisation (that of the training images).
        std: per channel, for normalisation (that of the training images).
    """
    folder = path or data_dir / "svhn"
    if first_with_files([folder], FILES) is None:
        if path:
            raise missing_data("svhn", where=folder, layout=LAYOUT)
        download("svhn", lambda: _fetch(folder), where=folder, layout=LAYOUT, notify=notify)
    require_files("svhn", folder, FILES)
    train, test = (read_mat(folder / file) for file in FILES)
    return memory_data(train, test, mean=mean, std=std, classes=tuple(map(str, range(10))))


def _fetch(folder: Path) -> None:
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import download_url

    for part in ("train", "test"):
        url, name, md5 = SVHN.split_list[part]
        download_url(url, str(folder), name, md5)
