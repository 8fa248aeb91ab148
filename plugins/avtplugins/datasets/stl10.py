"""STL-10, from its binary files."""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from avtcli.contracts import ImageData, MemorySplit, Notify
from avtcli.errors import AvtError
from avtplugins.datasets._files import RGB, download, fingerprint_of, first_with_files, missing_data, require_files, silent

FOLDER: Final = "stl10_binary"
CLASSES: Final = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
FILES: Final = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin")
LAYOUT: Final = f"{FOLDER}/{FILES[0]} ... {FILES[-1]}"
SIDE: Final = 96
PIXELS: Final = 3 * SIDE * SIDE

# of the 5 000 training images in [0, 1], as a comment in the code of EnAET states them with more digits; 0.4409, 0.4279, 0.3868
# in other public code are of the unlabelled ones
MEAN: Final = (0.4467, 0.4398, 0.4066)
STD: Final = (0.2603, 0.2566, 0.2713)


def read_images(path: Path) -> Tensor:
    """Map the images of a file, uint8 (n, 3, 96, 96), which are stored column by column; those used are read from the disk.

    Raises:
        AvtError: if its size is that of no number of images.
    """
    size = path.stat().st_size
    if not size or size % PIXELS:
        raise AvtError(f"{path} has {size} bytes, expected a multiple of {PIXELS}: copy the file again.")
    stored = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)  # a copy is made of what is written to
    return stored.view(-1, 3, SIDE, SIDE).transpose(2, 3)


def _labelled(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images, stored = read_images(folder / f"{part}_X.bin"), np.fromfile(folder / f"{part}_y.bin", np.uint8)
    if len(images) != len(stored) or stored.min() < 1 or stored.max() > len(CLASSES):
        raise AvtError(
            f"{folder / f'{part}_y.bin'} has {len(stored)} labels for {len(images)} images, expected one from 1 to "
            f"{len(CLASSES)} for each. Copy the file again."
        )
    return images, torch.from_numpy(stored.astype(np.int64) - 1)


def _some(images: Tensor) -> Tensor:
    """Return about a thousand of the images as they are stored: all of them are 3 GB to read."""
    return images[:: max(1, len(images) // 1000)].transpose(2, 3)


def stl10_folder(data_dir: Path) -> Path | None:
    """Find the folder of the binary files, at or below a folder."""
    return first_with_files((data_dir / FOLDER, data_dir), FILES)


def stl10(
    path: Path | None = None, /, *, data_dir: Path, notify: Notify = silent, mean: RGB = MEAN, std: RGB = STD
) -> ImageData:
    """STL-10: 100 000 images of 96 px without labels to pretrain on, 5 000 + 8 000 in ten classes to probe; downloaded.

    Args:
        path: the folder with the binary files, or the one above it.
        data_dir: the folder that is searched, and downloaded to, without a path.
        notify: receives a line of text when something is downloaded.
        mean: per channel, for normalisation (that of the labelled training images).
        std: per channel, for normalisation (that of the labelled training images).
    """
    root = path or data_dir
    folder = stl10_folder(root)
    if folder is None and path:
        raise missing_data("stl10", where=root, layout=LAYOUT)
    if folder is None:
        download("stl10", lambda: _fetch(root), where=root, layout=LAYOUT, notify=notify)
        folder = root / FOLDER
    require_files("stl10", folder, FILES)
    train, test, unlabelled = _labelled(folder, "train"), _labelled(folder, "test"), read_images(folder / "unlabeled_X.bin")
    return ImageData(
        MemorySplit(*train, prefix="train"),
        MemorySplit(*test, prefix="test"),
        channels=3,
        size=(SIDE, SIDE),
        mean=mean,
        std=std,
        classes=CLASSES,
        fingerprint=fingerprint_of([part for own in (train, test) for part in (_some(own[0]), own[1])] + [_some(unlabelled)]),
        unlabelled=MemorySplit(unlabelled, None, prefix="unlabelled"),
    )


def _fetch(root: Path) -> None:
    from torchvision.datasets import STL10
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(STL10.url, str(root), filename=STL10.filename, md5=STL10.tgz_md5)
