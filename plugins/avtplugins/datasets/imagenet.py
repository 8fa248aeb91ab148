"""ImageNet, one folder per class."""

from collections import Counter
from pathlib import Path
from typing import Final

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtplugins.datasets._encoded import encoded_data
from avtplugins.datasets._files import RGB
from avtplugins.datasets._image_files import (
    MEAN,
    STD,
    FileSplit,
    check_same_classes,
    find_root,
    found_root,
    list_classes,
)

LAYOUT: Final = (
    "train/CLASS/*.JPEG and val/CLASS/*.JPEG, one folder per class (ImageNet needs an account, avt does not download it)"
)


def imagenet_folder(data_dir: Path) -> Path | None:
    """Find the folder of the data set in the data folder."""
    return found_root("imagenet", data_dir, needs=("train", "val"))


def imagenet(path: Path | None = None, /, *, data_dir: Path, mean: RGB = MEAN, std: RGB = STD) -> ImageData:
    """ImageNet: about 1.28 million + 50 000 images in 1 000 classes, or any images laid out so; labels are the sorted folders.

    Args:
        path: the folder with train and val.
        data_dir: parent of the folder `imagenet`, without a path.
        mean: per channel, for normalisation (as in the release).
        std: per channel, for normalisation (as in the release).
    """
    root = find_root("imagenet", path, data_dir, needs=("train", "val"), layout=LAYOUT)
    left_out, found, splits = Counter[str](), dict[str, tuple[str, ...]](), []
    for part in ("train", "val"):
        listing, classes = list_classes(root / part, left_out, labelled=True)
        if not classes:
            raise AvtError(f"{root / part} has no class folders with images alone in it. Expected {LAYOUT}.")
        found[part] = classes
        splits.append(FileSplit(root / part, listing))
    check_same_classes(root, **found)
    return encoded_data(splits[0], splits[1], classes=found["train"], mean=mean, std=std, left_out=left_out)
