from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtplugins.datasets.places205 import places205

torch.set_num_threads(1)
IMAGES = "data/vision/torralba/deeplearning/images256"
TRAIN = {"a/abbey/gsun_1.jpg": 0, "a/abbey/gsun 2.jpg": 0, "v/volcano/crater/gsun_3.jpg": 199, "a/alley/gsun_4.jpg": 3}
VAL = {"v/volcano/crater/gsun_9.jpg": 199, "a/alley/gsun_8.jpg": 3}


def write_list(root: Path, part: str, lines: list[str], end: str = "\n") -> Path:
    path = root / "trainvalsplit_places205" / f"{part}_places205.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images in the published layout."""
    root = tmp_path / "places205"
    for number, name in enumerate([*TRAIN, *VAL]):
        path = root / IMAGES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (256, 256), (number * 40, 7, 200 - number * 30)).save(path)
    write_list(root, "train", [f"{name} {label}" for name, label in TRAIN.items()])
    write_list(root, "val", [f"{name} {label}" for name, label in VAL.items()])
    return root


def opened(root: Path) -> ImageData:
    return places205(root, data_dir=Path("nowhere"))


def test_images_and_labels_are_those_of_the_lists_in_their_order(root: Path):
    data = opened(root)
    for expected, split in ((TRAIN, data.train), (VAL, data.test)):
        assert split is not None
        assert split.labels is not None
        assert {split.name(i): int(split.labels[i]) for i in range(len(split))} == expected
        assert [split.name(i) for i in range(len(split))] == list(expected)
        for i, name in enumerate(expected):
            with Image.open(root / IMAGES / name) as image:
                assert torch.equal(split.read(i), torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert (data.channels, data.size, data.train.images) == (3, None, None)


def test_there_are_205_classes_called_as_their_folders(root: Path):
    classes = opened(root).classes
    assert classes is not None
    assert len(classes) == 205
    assert (classes[0], classes[3], classes[199], classes[7]) == ("a/abbey", "a/alley", "v/volcano/crater", "7")


def test_the_default_folder_is_places205_and_options_set_normalisation(root: Path):
    data = places205(data_dir=root.parent, mean=(0.5, 0.5, 0.5))
    assert len(data.train) == 4
    assert data.mean == (0.5, 0.5, 0.5)
    assert data.std == (0.229, 0.224, 0.225)


def test_lists_with_windows_line_ends_read_the_same(root: Path):
    before = opened(root).fingerprint
    write_list(root, "train", [f"{name} {label}" for name, label in TRAIN.items()], end="\r\n")
    assert opened(root).fingerprint == before


def test_the_fingerprint_follows_labels_and_sizes(root: Path):
    before = opened(root).fingerprint
    write_list(root, "val", [f"{name} 3" for name in VAL])
    other = opened(root).fingerprint
    with (root / IMAGES / "a/alley/gsun_4.jpg").open("ab") as file:
        file.write(b"\0")
    assert len({before, other, opened(root).fingerprint}) == 3


def test_a_list_that_names_missing_files_says_how_many_and_which_first(root: Path):
    for name in ("a/abbey/gsun 2.jpg", "a/alley/gsun_4.jpg"):
        (root / IMAGES / name).unlink()
    (root / IMAGES / "a/alley/gsun_4.jpg").mkdir()  # no file either
    expected = r"^2 of the 4 images of .*train_places205\.csv are not in .*256, the first is a/abbey/gsun 2\.jpg\. Unpack"
    with pytest.raises(AvtError, match=expected):
        opened(root)


@pytest.mark.parametrize("line", ["a/abbey/gsun_1.jpg", "a/abbey/gsun_1.jpg x", "a/abbey/gsun_1.jpg 205", " 3", ""])
def test_a_line_of_another_form_is_named_by_its_number(line: str, root: Path):
    path = write_list(root, "train", ["a/abbey/gsun_1.jpg 0", line])
    expected = rf"{path.name}, line 2: expected a path, a space and a label from 0 to 204, found b'{line}"
    with pytest.raises(AvtError, match=expected):
        opened(root)


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../../../x.jpg", "../x.jpg", "a\0b.jpg"])
def test_a_path_that_leaves_the_images_folder_is_refused(name: str, root: Path):
    write_list(root, "val", [f"{name} 0"])
    with pytest.raises(AvtError, match=r"val_places205\.csv, line 1: expected a path below the images' folder, found b'"):
        opened(root)


def test_a_list_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, mode: str):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AvtError, match=r"train_places205\.csv cannot be read: Permission denied\. Copy it again"):
        opened(root)


@pytest.mark.parametrize("absent", [IMAGES, "trainvalsplit_places205/val_places205.csv"])
def test_what_is_missing_is_named_with_the_layout_expected(absent: str, root: Path):
    (root / absent).rename(root / "away")
    expected = rf"'places205' is not in .*places205 \(there is no .*{absent}\)\. Expected: the images below {IMAGES}, and"
    with pytest.raises(AvtError, match=expected):
        opened(root)


def test_an_image_that_does_not_decode_is_named(root: Path):
    (root / IMAGES / "a/alley/gsun_4.jpg").write_bytes(b"no image")
    with pytest.raises(AvtError, match=r"images256/a/alley/gsun_4\.jpg does not decode: it is no image"):
        opened(root).train.read(3)
