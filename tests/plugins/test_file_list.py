"""Lists of images: text and csv, labels, splits, places, and what is not right in them."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avtcli.config.components import Plugin
from avtcli.contracts import ImageData
from avtcli.data.datasets import build_data
from avtcli.errors import AvtError
from avtplugins.datasets.file_list import files


@pytest.fixture(autouse=True)
def _images() -> None:
    """Images 0.png to 5.png in the folder `in`; image i has the grey level i."""
    Path("in").mkdir()
    for i in range(6):
        Image.fromarray(np.full((10, 9, 3), i, np.uint8)).save(f"in/{i}.png")


def listed(text: str, name: str = "list.csv") -> ImageData:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text, errors="surrogateescape")
    return files(Path(name).absolute())


def levels(data: ImageData, part: str = "train") -> list[int]:
    split = getattr(data, part)
    return [int(split.read(i)[0, 0, 0]) for i in range(len(split))]


def test_a_text_file_has_a_path_in_each_line_and_nothing_else(tmp_path: Path) -> None:
    os.rename("in/5.png", "in/a, b .png")
    data = listed(f"in/3.png\r\n\nin/a, b .png\n{tmp_path}/in/0.png", "list.txt")

    assert [data.train.name(i) for i in range(3)] == ["in/3.png", "in/a, b .png", "in/0.png"]
    assert levels(data) == [3, 5, 0]
    assert (data.train.labels, data.test, data.classes) == (None, None, None)


@pytest.mark.parametrize("header", ["path,label,split\n", "", "\ufeffPath, Label ,SPLIT\n"])
def test_a_csv_states_labels_and_splits(header: str) -> None:
    rows = "in/4.png,dog,train\nin/1.png,cat,test\nin/2.png,ant,\nin/0.png,cat,train\nin/3.png,dog,val\n"
    data = listed(header + rows)

    assert data.classes == ("ant", "cat", "dog")
    assert (levels(data), data.train.labels.tolist()) == ([4, 2, 0], [2, 0, 1])
    assert (levels(data, "test"), data.test.labels.tolist()) == ([1], [1])
    assert data.left_out == {"of the split val": 1}
    assert data.notes == ("labels: 3 classes", "splits: train and test")


def test_columns_have_names_and_others_are_not_read() -> None:
    data = listed('id,split,path,note\n1,val,in/1.png,"a, b"\n2,train,"in/2.png",\n')

    assert (levels(data), levels(data, "test"), data.train.labels) == ([2], [1], None)


def test_classes_that_are_numbers_are_sorted_by_value_and_an_image_may_have_none() -> None:
    data = listed("in/0.png,10\nin/1.png,9\nin/2.png,\n")

    assert data.classes == ("9", "10")
    assert data.train.labels.tolist() == [1, 0, -1]


def test_the_fingerprint_follows_what_the_list_says_and_not_its_place(tmp_path: Path) -> None:
    text = "in/0.png,a\nin/1.png,b\n"
    before = listed(text).fingerprint
    absolute = listed(text.replace("in/", f"{tmp_path}/in/")).fingerprint
    others = {listed(text.replace("b", "c,test")).fingerprint, listed(text.replace("1.png,b", "1.png,a")).fingerprint}
    Path("away").mkdir()
    Path("in").rename("away/in")

    assert before == absolute == listed(text, "away/list.csv").fingerprint
    assert len({before, *others}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "in/0.png,a,train\nin/1.png,a,holdout\n",
            r"line 2: expected a split of train, test, .*, found \['in/1.png', 'a', 'holdout'\]",
        ),
        ("path,label\n,a\n", r"line 2: expected a path, found \['', 'a'\]"),
        ("in/0.png\nin/../in/0.png\n", r"list\.csv names in/0\.png twice"),
        ("in/0.png\nin/8.png\nin\n", r"names 3 images, 2 are no files, the first is in/8\.png\. Paths are relative"),
        ("in/0.png,a,test\n", "names no training images"),
        ("", "names no training images"),
        ("in/0.png,\0a\n", r"line 1: found bytes that are no text\. Save the list as UTF-8"),
        ('"in/0.png', "cannot be read: unexpected end of data"),
    ],
)
def test_what_is_not_right_is_said_by_its_line(text: str, message: str) -> None:
    with pytest.raises(AvtError, match=message):
        listed(text)


def test_a_label_that_is_no_text_can_be_written() -> None:
    assert listed("in/0.png,a\udcff\nin/1.png,b\n").classes == (r"a\xff", "b")


def test_a_list_that_is_none_is_refused() -> None:
    with pytest.raises(
        AvtError, match=r"The list nowhere\.csv cannot be read: No such file or directory\. Expected a text file"
    ):
        files(Path("nowhere.csv"))


def test_grey_images_in_a_list_are_grey() -> None:
    text = "".join(f"in/{i}.png\n" for i in range(6))
    Path("list.txt").write_text(text)
    data = build_data(Plugin(name="files:list.txt"), None)

    assert (data.channels, tuple(data.train.read(3).shape)) == (1, (1, 10, 9))
