"""Data sets of the Hugging Face Hub, and those that its library saved or that lie in parquet or arrow files."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import numpy as np
import torch
from pydantic import AfterValidator
from torch import Tensor

from avtcli.contracts import ImageData
from avtcli.errors import AvtError, one_line
from avtplugins.datasets._decoding import Decoding
from avtplugins.datasets._encoded import MAX_BYTES, EncodedSplit
from avtplugins.datasets._own_images import WHITE, Channels, Colour, Figures, own_images, sorted_classes

TEST: Final = ("test", "validation", "val", "valid")
"""Names of the test split: the first of them that has labels, if train has any."""
LABEL_TYPES: Final = ("bool", "string", "large_string", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
EXPECTED: Final = "`hf:DIR` with a data set that save_to_disk wrote, or with .parquet or .arrow files, or `hf:NAME` of the Hub"


def _absolute_folder(name: str) -> str:
    path = os.path.abspath(os.path.expanduser(name))
    return path if os.path.isdir(path) else name


NameOrFolder = Annotated[str, AfterValidator(_absolute_folder)]
"""A folder that exists is absolute, so that the name means the same everywhere."""


class HubSplit(EncodedSplit):
    """A split whose encoded images are in a column of an Arrow table, or in files that it names.

    Args:
        rows: of `datasets`, with the column alone, not decoded.
        column: its name.
        labels: (n,) int64, or none.
        name: of the split.
    """

    def __init__(self, rows: Any, column: str, labels: Tensor | None, *, name: str) -> None:
        self.rows, self.column, self.labels, self.prefix = rows, column, labels, name
        digest = blake2b(digest_size=16)
        for size in _sizes(rows.data.column(column)):
            digest.update(size)
        digest.update(b"" if labels is None else labels.numpy().data)
        self.digest = digest.digest()

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        """The split's name and the row."""
        return f"{self.prefix}/{i}"

    @contextmanager
    def opened(self, i: int) -> Iterator[tuple[BinaryIO, str]]:
        """Take image i from the table, or from its file; see `EncodedSplit`."""
        cell, name = self.rows[i][self.column] or {}, f"row {i} of {self.prefix}"
        content, path = cell.get("bytes"), cell.get("path")
        try:
            if content is None and path:
                name = path
                with open(path, "rb") as file:
                    content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise AvtError(f"{path} was listed and cannot be read now: {error.strerror}. Check its disk.") from error
        if content is None or len(content) > MAX_BYTES:
            found = "has no image" if content is None else f"has {len(content)} bytes or more"
            raise AvtError(f"{name} {found}: expected an image of at most {MAX_BYTES // 1_000_000} MB.")
        yield BytesIO(content), name


def _sizes(column: Any) -> Iterator[bytes]:
    """Yield the sizes of the encoded images, those of an image in a file -1, and the names of files, chunk by chunk."""
    import pyarrow.compute as pc

    for chunk in column.chunks:
        contents, paths = (pc.struct_field(chunk, part) for part in ("bytes", "path"))
        yield pc.fill_null(pc.binary_length(contents), -1).to_numpy(zero_copy_only=False).astype("<i8").tobytes()
        if contents.null_count:
            yield "\0".join(os.path.basename(path or "") for path in paths.to_pylist()).encode()


def hf(
    name: NameOrFolder,
    /,
    *,
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
    channels: Channels = "auto",
    orient: bool = True,
    background: Colour = WHITE,
    mean: Figures = None,
    std: Figures = None,
) -> ImageData:
    """A Hugging Face data set: of the Hub by its name, downloaded, or of a folder; needs the library `datasets`.

    A folder holds what save_to_disk wrote, or .parquet or .arrow files. The splits are train, and test or validation; without
    them 5 % of the images are held out. Images are decoded as those of a folder are.

    Args:
        name: a folder, or the name on the Hub, as in `hf:ylecun/mnist`.
        config: configuration of the data set, where it has several; none for what save_to_disk wrote.
        image: column of the images; left out, the only one of type Image.
        label: column of the labels; left out, the only one of type ClassLabel, or `label` of several.
        channels: 1 for grey, 3 for RGB; auto takes 1 where all sampled images are grey.
        orient: apply the EXIF orientation of photographs.
        background: RGB colour, 0 to 255, under transparent pixels.
        mean: per channel, for normalisation; left out, that of a sample of the images.
        std: per channel, for normalisation; left out, that of a sample of the images.
    """
    found = _open(name, config)
    splits = dict(found) if isinstance(found, Mapping) else {"train": found}
    splits = {"train": next(iter(splits.values()))} if len(splits) == 1 else splits
    if "train" not in splits:
        raise AvtError(f"The data set {name} has the splits {', '.join(splits)}. Expected train, and test or validation.")
    kinds = {part: splits[part] for part in ("train", *TEST) if part in splits}
    column = image or _only(kinds["train"], "Image")
    if column is None or column not in kinds["train"].features:
        raise AvtError(f"{name} {_columns(kinds['train'], column, 'image')}")
    labels, classes = _labels(kinds, label or _only(kinds["train"], "ClassLabel", "label"), name, given=label is not None)
    parts = [part for part in kinds if part == "train" or classes is None or bool((labels[part] >= 0).any())][:2]
    opened = [HubSplit(_encoded(kinds[part], column, name), column, labels.get(part), name=part) for part in parts]
    notes = [f"images: column {column}", f"labels: {'none' if classes is None else f'{len(classes)} classes'}"]
    notes += [f"splits: train and {parts[1]}"] if parts[1:] else []
    left_out = {f"of the split {part}": len(rows) for part, rows in splits.items() if part not in parts}
    facts: dict[str, Any] = {"classes": classes, "notes": tuple(notes), "left_out": left_out}
    how = Decoding(orient=orient, background=background)
    return own_images(opened[0], opened[1] if parts[1:] else None, how, channels, mean=mean, std=std, **facts)


def _open(name: str, config: str | None) -> Any:
    """Return what the library opens, splits by name or one split.

    Raises:
        AvtError: if the library is missing, or it cannot open the data set.
    """
    try:
        import datasets
    except ImportError as error:
        raise AvtError("Data sets of Hugging Face need their library: `pip install 'avtcli[hf]'`.") from error
    folder = Path(name)
    saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
    if folder.is_dir() and not saved and not any(next(folder.rglob(f"*.{kind}"), None) for kind in ("parquet", "arrow")):
        raise AvtError(f"The folder {folder} has no data set. Expected {EXPECTED}. For image files give `folder:DIR`.")
    if saved and config is not None:
        raise AvtError(
            f"The data set saved in {folder} has no configurations, found dataset.config = '{config}'. Leave it out."
        )
    try:
        with _quiet():
            return datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config)
    except Exception as error:  # the library, the network and a damaged file can fail in any way
        raise AvtError(
            f"The Hugging Face data set '{name}' cannot be opened: {one_line(error)}. Expected {EXPECTED}; without a network "
            "one that was downloaded before, or try the embedded data: `--dataset fashion-mini`."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, without a network no line is written for each attempt, and opening a data set is not reported to the Hub."""
    import datasets

    hub = logging.getLogger("huggingface_hub")
    before = hub.level, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    hub.setLevel(logging.ERROR)
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        hub.setLevel(before[0])
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = before[1]


def _only(rows: Any, kind: str, *preferred: str) -> str | None:
    """Return the only column of a type, or the preferred one of several; else none."""
    found = [column for column, feature in rows.features.items() if type(feature).__name__ == kind]
    return next((column for column in preferred if column in found), found[0] if len(found) == 1 else None)


def _columns(rows: Any, column: str | None, option: str) -> str:
    """Describe the columns of a data set of which none could be taken."""
    stated = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in rows.features.items())
    found = f"has no column '{column}'" if column else f"does not say which column is the {option}"
    return f"{found}. Its columns: {stated}. Give `-o dataset.{option}=COLUMN`."


def _encoded(rows: Any, column: str, name: str) -> Any:
    """Return the column of the images alone, not decoded."""
    import datasets

    try:
        return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # of a column of another type
        raise AvtError(f"The column '{column}' of {name} is not one of images: {one_line(error)}.") from error


def _labels(
    splits: Mapping[str, Any], column: str | None, name: str, *, given: bool
) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Read the labels of each split, -1 where an image has none, and the classes; neither without a column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column is None:
        return {}, None
    for rows in splits.values():
        if column not in rows.features:
            raise AvtError(f"{name} {_columns(rows, column, 'label')}")
    features = {part: rows.features[column] for part, rows in splits.items()}
    stated = getattr(features["train"], "names", None)
    if len({str(feature) for feature in features.values()}) > 1:
        raise AvtError(f"The column '{column}' of {name} has other labels or another type in {' than in '.join(splits)}.")
    if stated is None and getattr(features["train"], "dtype", "") not in LABEL_TYPES:
        raise AvtError(f"The column '{column}' of {name} is not one of labels. Expected integers, texts or booleans.")
    columns = {part: rows.data.column(column) for part, rows in splits.items()}
    if stated is not None:
        read = {part: pc.fill_null(own, -1).to_numpy().astype(np.int64) for part, own in columns.items()}
        return {part: torch.from_numpy(own) for part, own in read.items()}, tuple(stated)
    values = [value for value in pc.unique(pa.chunked_array([c for own in columns.values() for c in own.chunks])).to_pylist()]
    classes = sorted_classes(str(value) for value in values if value is not None)
    number = {text: i for i, text in enumerate(classes)}
    numbers = np.array([*(-1 if value is None else number[str(value)] for value in values), -1], np.int64)
    codes = {part: pc.index_in(own, pa.array(values, own.type)).to_numpy() for part, own in columns.items()}
    return {part: torch.from_numpy(numbers[own]) for part, own in codes.items()}, classes
