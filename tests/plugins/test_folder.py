import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from avtcli import registry
from avtcli.config.components import Plugin
from avtcli.contracts import ImageData
from avtcli.data.datasets import build_data, describe_data
from avtcli.data.held_out import partition
from avtcli.data.images import CropSpec, crop_image, resize
from avtcli.data.streaming import StreamedImages
from avtcli.errors import AvtError
from avtplugins.datasets._decoding import AS_PUBLISHED
from avtplugins.datasets._image_files import FileSplit
from avtplugins.datasets.folder import folder

torch.set_num_threads(1)


def save(path: Path, number: int = 0, *, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def names(data: ImageData) -> list[str]:
    return [data.train.name(i) for i in range(len(data.train))]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images whose names sort otherwise than a walk folder by folder would take them."""
    for number, name in enumerate(("b/2.jpg", "a.png", "a/c/1.JPEG", "a-0.bmp", "z.webp", "a/0.ppm", "b.jpg")):
        save(tmp_path / "photos" / name, number, size=(20 + number, 16))
    return tmp_path / "photos"


def test_every_image_at_any_depth_is_there_sorted_by_its_name(photos: Path) -> None:
    expected = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.*"))

    assert names(folder(photos)) == expected
    assert expected == ["a-0.bmp", "a.png", "a/0.ppm", "a/c/1.JPEG", "b.jpg", "b/2.jpg", "z.webp"]


def classes_of(data: ImageData) -> list[tuple[str, str]]:
    """Name and class of each training image."""
    assert data.train.labels is not None
    assert data.classes is not None
    return [(name, data.classes[label]) for name, label in zip(names(data), data.train.labels.tolist(), strict=True)]


def opened(path: Path, **options: object) -> ImageData:
    """With what is chosen from the images, as commands open it."""
    return build_data(Plugin(name=f"folder:{path}", **options), None)


def test_images_are_rgb_without_labels_classes_or_a_test_part(photos: Path) -> None:
    data = folder(photos)

    assert (data.train.labels, data.train.images, data.test, data.classes, data.size) == (None, None, None, None, None)
    for i, name in enumerate(names(data)):
        with Image.open(photos / name) as image:
            expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        assert torch.equal(data.train.read(i), expected)


def test_hidden_files_hidden_folders_and_other_files_are_left_out(photos: Path) -> None:
    before = names(folder(photos))
    save(photos / ".cache" / "x.jpg")
    save(photos / "b" / ".x.jpg")
    (photos / "notes.txt").write_text("no image")
    (photos / "album.jpg").mkdir()

    assert names(folder(photos)) == before


def test_links_are_followed_unless_they_loop_or_lead_nowhere(photos: Path, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "far.jpg")
    (photos / "file.jpg").symlink_to(tmp_path / "elsewhere" / "far.jpg")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "b" / "up").symlink_to(photos)
    (photos / "gone.jpg").symlink_to(tmp_path / "nothing")
    (photos / "self.jpg").symlink_to(photos / "self.jpg")

    assert names(folder(photos)) == [
        *("a-0.bmp", "a.png", "a/0.ppm", "a/c/1.JPEG", "b.jpg", "b/2.jpg", "file.jpg", "linked/far.jpg", "z.webp")
    ]


def test_the_fingerprint_follows_names_and_sizes_and_not_the_place(photos: Path) -> None:
    before = folder(photos).fingerprint
    transformed = photos.rename(photos.parent / "transformed")
    same = folder(transformed).fingerprint
    (transformed / "b.jpg").rename(transformed / "c.jpg")
    renamed = folder(transformed).fingerprint
    (transformed / "c.jpg").write_bytes((transformed / "c.jpg").read_bytes() + b"\0")

    assert same == before
    assert len({before, renamed, folder(transformed).fingerprint}) == 3


def test_class_folders_are_labels_as_torchvision_has_them(tmp_path: Path) -> None:
    for number, name in enumerate(("b-1/1.png", "b/2.png", "b/deep/er/3.png", "a/4.jpg")):
        save(tmp_path / name, number)
    (tmp_path / "empty").mkdir()
    data = folder(tmp_path)
    reference = ImageFolder(str(tmp_path), allow_empty=True)

    assert classes_of(data) == [("a/4.jpg", "a"), ("b/2.png", "b"), ("b/deep/er/3.png", "b"), ("b-1/1.png", "b-1")]
    assert [str(tmp_path / name) for name in names(data)] == [path for path, _ in reference.samples]
    assert "labels: 3 class folders" in data.notes
    assert folder(tmp_path, labels="none").train.labels is None


def test_images_without_any_folder_have_no_labels_for_that_reason(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        save(tmp_path / name)

    assert "labels: none, as there are no sub-folders with images" in folder(tmp_path).notes


@pytest.mark.parametrize("start", [".", "train"])
def test_a_link_to_a_parent_gives_no_class_the_images_of_another(start: str, tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / start / name / "0.png")
    (tmp_path / start / "a" / "up").symlink_to("..")
    (tmp_path / start / "b" / "root").symlink_to(tmp_path)
    data = folder(tmp_path)

    assert data.classes == ("a", "b", "c")
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 1, 2]


def test_the_name_of_a_class_can_be_written(tmp_path: Path) -> None:
    for name in (b"a\xff", b"b"):
        save(tmp_path / os.fsdecode(name) / "0.png")

    assert folder(tmp_path).classes == (r"a\xff", "b")


@pytest.mark.parametrize("more", ["top.png", None])
def test_an_image_next_to_the_folders_or_a_single_folder_means_no_labels(more: str | None, tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", *([more, "b/3.png"] if more else [])):
        save(tmp_path / name)
    data = folder(tmp_path)

    assert (data.train.labels, data.classes) == (None, None)
    assert "labels: none, as no two class folders hold all images" in data.notes


@pytest.mark.parametrize(
    ("present", "test"),
    [(["test", "val"], "test"), (["val"], "val"), (["validation"], "validation"), (["valid"], "valid"), ([], None)],
)
def test_train_and_test_folders_are_the_splits(present: list[str], test: str | None, tmp_path: Path) -> None:
    for number, part in enumerate(["train", *present]):
        for name in ("cat", "dog"):
            save(tmp_path / part / name / f"{number}.png", number)
    data = folder(tmp_path)

    assert classes_of(data) == [("cat/0.png", "cat"), ("dog/0.png", "dog")]
    assert (data.test is None) == (test is None)
    if data.test is not None:
        assert data.test.folder == tmp_path / str(test)
        assert data.test.labels.tolist() == [0, 1]
        assert f"splits: train and {test}" in data.notes


def test_a_test_folder_without_classes_gives_way_to_one_with_them(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "val/a/2.png", "val/b/2.png", "test/3.png"):
        save(tmp_path / name)

    (tmp_path / ".hidden.png").touch()
    data = folder(tmp_path)

    assert data.test.folder.name == "val"
    assert "not read: test" in data.notes
    assert data.left_out == {"hidden": 1}
    assert folder(tmp_path, labels="none").test.folder.name == "test"


def test_other_class_folders_in_test_are_refused_with_the_way_out(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"):
        save(tmp_path / name)

    with pytest.raises(AvtError, match=r"1 of train are not in test \(first b\), .*first c.* `-o dataset.labels=none`"):
        folder(tmp_path)
    assert len(folder(tmp_path, labels="none").test) == 2


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("car/1.png", "train/2.png", "plane/3.png"):
        save(tmp_path / name)

    assert folder(tmp_path).classes == ("car", "plane", "train")


def test_what_is_left_out_is_counted_by_its_reason(photos: Path) -> None:
    for name in ("x.txt", "b/y.TXT", "notes", ".hidden.jpg"):
        (photos / name).write_text("no image")
    (photos / "gone.png").symlink_to("nothing")
    os.mkfifo(photos / "pipe.png")
    data = folder(photos)

    assert data.left_out == {".txt": 2, "without suffix": 1, "hidden": 1, "links to nothing": 1, "no regular files": 1}
    (text,) = [note for note in describe_data(data) if "left out" in note]
    assert text == "left out: 6 files (2 .txt, 1 hidden, 1 links to nothing, 1 no regular files, 1 without suffix)"


@pytest.mark.parametrize("kind", ["jfif", "pgm", "tif", "tiff", "gif"])
def test_more_kinds_of_files_are_images(kind: str, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 77).save(tmp_path / f"x.{kind}", format={"jfif": "JPEG", "pgm": "PPM", "tif": "TIFF"}.get(kind))

    assert folder(tmp_path, channels=1).train.read(0).unique().tolist() == [77]


def test_mean_and_std_are_measured_on_images_that_are_not_held_out(photos: Path) -> None:
    for number in range(40):
        save(photos / f"more{number}.png", number + 10)
    data = opened(photos)
    kept = [data.train.read(i).double().numpy() / 255 for i in partition(data).train.tolist()]
    means, squares = (np.stack([(image**power).mean((1, 2)) for image in kept]).mean(0) for power in (1, 2))

    assert len(kept) < len(data.train)
    assert data.mean == pytest.approx(means, abs=1e-4)
    assert data.std == pytest.approx(np.sqrt(squares - means**2), abs=1e-4)
    assert data.chosen == {"channels": 3, "mean": data.mean, "std": data.std}
    assert data.typical_side == 16
    assert opened(photos, **data.chosen).chosen == {}


def test_figures_that_are_given_stay_and_state_the_channels(photos: Path) -> None:
    data = opened(photos, std=[0.5, 0.5, 0.25])

    assert data.std == (0.5, 0.5, 0.25)
    assert sorted(data.chosen) == ["mean"]
    with pytest.raises(AvtError, match=r"a figure for each of 1 or 3 channels, found \(0\.5,\), None and channels 3"):
        opened(photos, mean=[0.5], channels=3)


def test_grey_stays_grey_where_all_images_are(tmp_path: Path) -> None:
    for number, (kind, mode) in enumerate(
        (("png", "L"), ("png", "RGB"), ("jpg", "L"), ("png", "1"), ("gif", "P"), ("png", "LA"))
    ):
        Image.new("L", (12, 10), 51 * (number % 2)).convert(mode).save(tmp_path / f"{number}.{kind}")
    data = opened(tmp_path)

    assert (data.channels, len(data.mean), data.chosen["channels"]) == (1, 1, 1)
    assert [tuple(data.train.read(i).shape) for i in range(6)] == [(1, 10, 12)] * 6
    assert opened(tmp_path, channels="3").channels == 3
    for number in range(3):  # two of any number are held out
        Image.new("RGB", (12, 10), "red").save(tmp_path / f"red{number}.png")
    assert opened(tmp_path).channels == 3
    assert opened(tmp_path, channels="1").train.read(6).unique().tolist() == [76]  # the luminance of red


def test_large_photographs_are_decoded_at_a_lower_resolution_where_they_are_resized(tmp_path: Path) -> None:
    """Within a few grey levels of the full resolution; small ones, other formats and the published data sets exactly."""
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    photo = Image.fromarray(small).resize((700, 500), Image.Resampling.BICUBIC)
    for name in ("large.jpg", "other.png"):
        photo.save(tmp_path / name)
    photo.resize((140, 100)).save(tmp_path / "small.jpg")
    data, crop = folder(tmp_path), CropSpec((64, 64))

    def differences(split: FileSplit) -> list[int]:
        images = StreamedImages(split, torch.arange(3), device=torch.device("cpu"), shorter=64)
        (found,) = images.read_batches([torch.arange(3)], crop)
        full = [crop_image(resize(split.read(i), 64, name=""), crop, None, name="") for i in range(3)]
        return [int((one.int() - other.int()).abs().max()) for one, other in zip(found, full, strict=True)]

    assert data.train.resized(64).read(0).shape == (3, 250, 350)
    assert data.train.read(0).shape == (3, 500, 700)
    assert 0 < differences(data.train)[0] <= 4
    assert differences(data.train)[1:] == [0, 0]
    assert differences(data.train.decoded(AS_PUBLISHED)) == [0, 0, 0]


@pytest.mark.parametrize(("highest", "said"), [(4095, ["images: the highest value is 15 of 255"]), (65535, [])])
def test_12_bits_in_files_of_16_are_reported(highest: int, said: list[str], tmp_path: Path) -> None:
    for number in range(5):
        pixels = np.linspace(0, highest, 64).reshape(8, 8).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{number}.tif")

    assert [note.partition(".")[0] for note in opened(tmp_path).notes if "highest" in note] == said


def test_images_that_cannot_be_read_choose_nothing(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    data = opened(tmp_path)

    assert (data.channels, data.mean) == (3, (0.485, 0.456, 0.406))
    assert "no sampled image can be read" in data.notes


def test_what_is_no_folder_of_images_is_refused_with_what_was_expected(photos: Path) -> None:
    (photos / "empty").mkdir()
    (photos / "empty" / "x.txt").write_bytes(b"II")

    with pytest.raises(AvtError, match=r"The folder nowhere does not exist: give `--dataset folder:DIR`"):
        folder(Path("nowhere"))
    with pytest.raises(AvtError, match=r"a.png is a file: give `--dataset folder:DIR`"):
        folder(photos / "a.png")
    with pytest.raises(AvtError, match=r"empty has no images \(1 other files: .txt\). Expected images at any depth, .jpeg"):
        folder(photos / "empty")


@pytest.mark.parametrize("labels", ["auto", "none"])
@pytest.mark.parametrize("flat", [False, True])
def test_each_folder_is_listed_once(labels: str, flat: bool, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, scandir, listed = photos / "a" if flat else photos, os.scandir, list[str]()

    def counting(path: bytes):
        listed.append(os.fsdecode(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    folder(where, labels=labels)
    monkeypatch.undo()
    assert sorted(listed) == sorted(map(str, [where, *(path for path in where.rglob("*") if path.is_dir())]))


def test_a_folder_below_that_cannot_be_read_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(path: bytes):
        if path.endswith(b"/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(AvtError, match=r"The folder .*/photos/b cannot be read: Permission denied. Check its permissions"):
        folder(photos)


def test_a_path_is_needed() -> None:
    with pytest.raises(AvtError, match=r"it needs something after a colon, as in `folder:VARIANT`"):
        registry.build("dataset", "folder", {})
