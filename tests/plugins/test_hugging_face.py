"""Data sets of Hugging Face: on disk as its library writes them, their columns and splits, and what is missing."""

import io
import logging
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from avtcli import registry
from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from tests.trust.test_hostile_images import damaged

torch.set_num_threads(1)
datasets.disable_progress_bars()


def png(level: int, *, side: int = 40) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side + 1, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def rows(*levels: int, labels: Any = None, kind: Any = None, **more: Any) -> datasets.Dataset:
    """Images of a grey level each, by default with the class of an even or an odd one."""
    columns = {
        "picture": [{"bytes": png(level), "path": None} for level in levels],
        "kind": [level % 2 for level in levels] if labels is None else labels,
    }
    kind = kind or datasets.ClassLabel(names=["even", "odd"])
    features = {"picture": datasets.Image(), "kind": kind, **{name: value.pop("type") for name, value in more.items()}}
    values = {name: value["values"] for name, value in more.items()}
    return datasets.Dataset.from_dict({**columns, **values}, features=datasets.Features(features))


def opened(**options: Any) -> ImageData:
    data: ImageData = registry.build("dataset", "hf:data", options)
    return data


def levels(split: Any) -> list[int]:
    return [int(split.read(i)[0, 0, 0]) for i in range(len(split))]


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def save(splits: dict[str, datasets.Dataset], kind: str) -> None:
    if kind == "disk":
        datasets.DatasetDict(splits).save_to_disk("data")
        return
    Path("data").mkdir()
    for name, split in splits.items():
        split.to_parquet(f"data/{name}-00000-of-00001.parquet")


@pytest.mark.parametrize("kind", ["disk", "parquet"])
def test_splits_columns_and_labels_are_found(kind: str) -> None:
    save({"train": rows(1, 2, 3), "validation": rows(5, 4)}, kind)
    data = opened()

    assert (data.classes, data.train.labels.tolist(), data.test.labels.tolist()) == (("even", "odd"), [1, 0, 1], [1, 0])
    assert (levels(data.train), levels(data.test)) == ([1, 2, 3], [5, 4])
    assert (data.train.name(2), data.test.name(0), data.train.describe(0)) == ("train/2", "validation/0", "PNG RGB")
    assert data.notes == ("images: column picture", "labels: 2 classes", "splits: train and validation")


def test_a_single_split_and_images_in_files_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving takes files into the tables; the library leaves them where it downloaded them."""
    Path("7.png").write_bytes(png(7))
    paths = [{"bytes": None, "path": str(Path("7.png").absolute())}, {"bytes": png(8), "path": "8.png"}, None]
    features = datasets.Features({"x": datasets.Image()})
    found = datasets.Dataset.from_dict({"x": paths}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: found)
    data = registry.build("dataset", "hf:a/b", {})

    assert (len(data.train), data.test, data.classes) == (3, None, None)
    assert [int(data.train.read(i)[0, 0, 0]) for i in range(2)] == [7, 8]
    with pytest.raises(AvtError, match=r"^row 2 of train has no image: expected an image of at most 400 MB"):
        data.train.read(2)
    Path("7.png").unlink()
    with pytest.raises(AvtError, match=r"^\S*/7\.png was listed and cannot be read now: No such file"):
        data.train.read(0)


@pytest.mark.parametrize(
    ("values", "kind", "classes", "numbers"),
    [
        ([10, 9, 10], datasets.Value("int32"), ("9", "10"), [1, 0, 1]),
        (["dog", None, "ant"], datasets.Value("string"), ("ant", "dog"), [1, -1, 0]),
        (["None", "cat", None], datasets.Value("string"), ("None", "cat"), [0, 1, -1]),
        ([1, None, 0], datasets.ClassLabel(names=["a", "b"]), ("a", "b"), [1, -1, 0]),
    ],
)
def test_a_column_of_any_type_may_state_the_labels(values: list[Any], kind: Any, classes: Any, numbers: list[int]) -> None:
    save({"train": rows(1, 2, 3, labels=values, kind=kind)}, "disk")
    data = opened(label="kind")

    assert (data.classes, data.train.labels.tolist()) == (classes, numbers)
    assert (opened().classes is None) == (type(kind) is datasets.Value)


def test_a_test_split_without_labels_gives_way_to_one_with_them() -> None:
    save({"test": rows(6, 7, labels=[-1, -1]), "train": rows(1, 2), "validation": rows(4)}, "disk")

    assert (opened().test.name(0), opened().left_out) == ("validation/0", {"of the split test": 2})


def test_of_several_columns_one_is_given() -> None:
    more = {
        "fine": {"values": [0, 1], "type": datasets.ClassLabel(names=["x", "y"])},
        "other": {"values": [{"bytes": png(9), "path": None}] * 2, "type": datasets.Image()},
    }
    save({"train": rows(1, 2, **more)}, "disk")

    data = opened(image="other", label="fine")
    assert (levels(data.train), data.classes) == ([9, 9], ("x", "y"))
    assert opened(image="picture").classes is None
    columns = r"Its columns: picture \(Image\), kind \(ClassLabel\), fine \(ClassLabel\), other \(Image\)"
    with pytest.raises(
        AvtError, match=rf"does not say which column is the image\. {columns}\. Give `-o dataset\.image=COLUMN`"
    ):
        opened()
    with pytest.raises(AvtError, match=rf"has no column 'no'\. {columns}\. Give `-o dataset\.label=COLUMN`"):
        opened(image="other", label="no")
    with pytest.raises(AvtError, match=r"The column 'fine' of \S*/data is not one of images: "):
        opened(image="fine")


def test_the_fingerprint_follows_sizes_and_labels() -> None:
    save({"train": rows(1, 2, 3)}, "disk")
    before = opened().fingerprint
    Path("data").rename("disk")
    save({"train": rows(1, 2, 3)}, "parquet")
    same = opened().fingerprint
    Path("data").rename("parquet")
    save({"train": rows(1, 2, 3, labels=[1, 0, 0])}, "disk")

    assert same == before
    assert opened().fingerprint != before


def test_each_damaged_image_is_refused_by_its_row() -> None:
    contents = [content for _, content in damaged()]
    features = datasets.Features({"image": datasets.Image()})
    pictures = [{"bytes": content, "path": None} for content in contents]
    datasets.Dataset.from_dict({"image": pictures}, features=features).save_to_disk("data")
    data = opened()

    for i in range(len(contents)):
        with pytest.raises(AvtError, match=rf"^row {i} of train (does not decode|states more than 50)"):
            data.train.read(i)


def test_what_is_no_data_set_is_refused_with_what_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = r"Expected `hf:DIR` with a data set that save_to_disk wrote, or with \.parquet or \.arrow files, or `hf:NAME`"
    Path("data").mkdir()
    Path("data/x.png").write_bytes(png(1))
    with pytest.raises(AvtError, match=rf"^The folder \S*/data has no data set\. {expected}.* give `folder:DIR`"):
        opened()
    Path("data/x.parquet").write_bytes(b"PAR1")
    with pytest.raises(AvtError, match=rf"^The Hugging Face data set '\S*/data' cannot be opened: .*\. {expected}"):
        opened()
    save({"first": rows(1), "second": rows(2)}, "disk")
    with pytest.raises(AvtError, match=r"has the splits first, second\. Expected train, and test or validation"):
        opened()

    def refuse(*args: object) -> None:
        raise ConnectionError("Couldn't reach 'a/b' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    message = r"'a/b' cannot be opened: ConnectionError: Couldn't reach 'a/b' on the Hub\. .*; without a network one that was"
    with pytest.raises(AvtError, match=message):
        registry.build("dataset", "hf:a/b", {})
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(AvtError, match=r"need their library: `pip install 'avtcli\[hf\]'`"):
        registry.build("dataset", "hf:a/b", {})


def test_a_configuration_of_a_saved_data_set_is_refused() -> None:
    save({"train": rows(1, 2)}, "disk")

    with pytest.raises(
        AvtError, match=r"^The data set saved in \S*/data has no configurations, found dataset\.config = 'en'\."
    ):
        opened(config="en")


def test_the_settings_of_the_library_are_those_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, seen = logging.getLogger("huggingface_hub"), list[tuple[int, bool]]()

    def load(*args: object) -> datasets.Dataset:
        seen.append((hub.level, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS))
        if args[0] == "a/b":
            raise ConnectionError("no network")
        return rows(1, 2)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(hub, "level", logging.INFO)
    registry.build("dataset", "hf:a/c", {})
    with pytest.raises(AvtError, match="no network"):
        registry.build("dataset", "hf:a/b", {})

    assert seen == [(logging.ERROR, False)] * 2
    assert (hub.level, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS) == (logging.INFO, True)


def test_a_folder_is_absolute_and_a_name_stays() -> None:
    Path("data").mkdir()

    assert registry.resolve("dataset", "hf:data", {})[0] == f"hf:{Path('data').absolute()}"
    assert registry.resolve("dataset", "hf:ylecun/mnist", {})[0] == "hf:ylecun/mnist"


def test_a_run_and_a_probe_on_a_saved_data_set(avt: Any) -> None:
    save({"train": rows(*range(12)), "test": rows(5, 6)}, "disk")
    small = "-o backbone.width=0.05 --batch-size 4 --max-steps 3 --device cpu"
    made = avt(f"pretrain --dataset hf:data {small} --workers 2 --out run")
    probed = avt("probe run --head knn --no-baseline --workers 0 --device cpu --json")

    assert (made.code, "splits: train and test" in made.stderr) == (0, True)
    assert probed.json["results"][0]["train_images"] == 12


@pytest.mark.parametrize("names", [["odd", "even"], ["even", "odd", "other"]])
def test_splits_with_other_labels_are_refused(names: list[str]) -> None:
    save({"train": rows(1, 2), "test": rows(3, 4, kind=datasets.ClassLabel(names=names))}, "disk")

    with pytest.raises(AvtError, match=r"'kind' of .*data has other labels or another type in train than in test"):
        opened()


def test_a_column_that_is_no_label_is_refused() -> None:
    save({"train": rows(1, 2)}, "disk")

    with pytest.raises(AvtError, match=r"'picture' of .*data is not one of labels"):
        opened(label="picture")
