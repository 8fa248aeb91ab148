"""Any images in any folder, with labels where it has class folders."""

import os
from collections import Counter
from pathlib import Path
from typing import Final, Literal

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtplugins.datasets._decoding import SUFFIXES, Decoding
from avtplugins.datasets._image_files import FileSplit, Listed, check_same_classes, list_classes, list_folder
from avtplugins.datasets._own_images import WHITE, Channels, Colour, Figures, own_images

EXPECTED: Final = f"images at any depth, {', '.join(suffix.decode() for suffix in SUFFIXES)}, hidden ones left out"
TEST: Final = ("test", "val", "validation", "valid")
"""The folder next to `train` that is the test split: the first of them that has train's class folders."""


def folder(
    path: Path,
    /,
    *,
    labels: Literal["auto", "none"] = "auto",
    channels: Channels = "auto",
    orient: bool = True,
    background: Colour = WHITE,
    mean: Figures = None,
    std: Figures = None,
) -> ImageData:
    """Any images: every image file in a folder and the folders below, with the labels and splits that the folders state.

    Labels: where all images lie in two folders or more, these are the classes, whatever is below them; with an image next to
    the folders there are none. Splits: `train` next to `test` or `val`, each with the same class folders or with none, are
    the splits; else 5 % of the images are held out. The names are sorted.

    Args:
        path: the folder.
        labels: auto, or none to take no folder for a class.
        channels: 1 for grey, 3 for RGB; auto takes 1 where all sampled images are grey.
        orient: apply the EXIF orientation of photographs.
        background: RGB colour, 0 to 255, under transparent pixels.
        mean: per channel, for normalisation; left out, that of a sample of the images.
        std: per channel, for normalisation; left out, that of a sample of the images.
    """
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        lists = f" A list of images: `--dataset files:{path}`." if path.exists() else ""
        raise AvtError(f"The folder {path} {found}: give `--dataset folder:DIR` with a folder of images.{lists}")
    left_out, how, labelled = Counter[str](), Decoding(orient=orient, background=background), labels == "auto"
    top = list_folder(os.fsencode(path))
    tests = _test_folders(path, top)
    root = path if tests is None else path / "train"
    listing, classes = list_classes(root, left_out, labelled=labelled, listed=top if tests is None else None)
    classes = classes if classes is not None and len(classes) > 1 else None
    train = FileSplit(root, listing, labelled=classes is not None)
    if not len(train):
        others = f" ({sum(left_out.values())} other files: {', '.join(left_out)})" if left_out else ""
        raise AvtError(f"The folder {root} has no images{others}. Expected {EXPECTED}: give another `--dataset folder:DIR`.")
    test = _test_split(path, tests or [], classes, left_out)
    notes = [] if test is None else [f"splits: train and {test.folder.name}"]
    if tests is not None:
        left_out.update(top.left_out)
        read = {b"train", *([] if test is None else [os.fsencode(test.folder.name)])}
        unread = sorted({*top.folders} - read)
        notes += [f"not read: {', '.join(name.decode(errors='backslashreplace') for name in unread)}"] if unread else []
    why = "no two class folders hold all images" if b"/" in listing else "there are no sub-folders with images"
    stated = f"none, as {why}" if labelled else "none (dataset.labels)"
    notes += [f"labels: {stated if classes is None else f'{len(classes)} class folders'}"]
    facts = {"classes": classes, "notes": tuple(notes), "left_out": left_out}
    return own_images(train, test, how, channels, mean=mean, std=std, **facts)


def _test_folders(path: Path, top: Listed) -> list[Path] | None:
    """Return the folders next to `train` that may be the test split; none if the folder is not divided into splits."""
    tests = [path / name for name in TEST if name.encode() in top.folders]
    return tests if b"train" in top.folders and not top.files and (tests or len(top.folders) == 1) else None


def _test_split(root: Path, tests: list[Path], classes: tuple[str, ...] | None, left_out: Counter[str]) -> FileSplit | None:
    """Return the first test split that fits the training images; none if there are no images in any."""
    failed = None
    for folder_ in tests:
        found = Counter[str]()
        listing, own = list_classes(folder_, found, labelled=classes is not None)
        if not listing:
            continue
        try:
            if classes is not None:
                check_same_classes(root, train=classes, **{folder_.name: own or ()})
        except AvtError as error:
            failed = failed or error
            continue
        left_out.update(found)
        return FileSplit(folder_, listing, labelled=classes is not None)
    if failed is not None:
        raise AvtError(f"{failed} Or give `-o dataset.labels=none` to read the images without labels.") from failed
    return None
