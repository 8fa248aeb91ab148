import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avtcli import registry
from avtcli.contracts import ImageData
from avtcli.errors import AvtError
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


def test_the_normalisation_is_imagenets_and_options_change_it(photos: Path) -> None:
    data = registry.build("dataset", f"folder:{photos}", {"std": [0.5, 0.5, 0.25]})

    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.5, 0.5, 0.25))
    assert folder(photos).std == (0.229, 0.224, 0.225)


def test_what_is_no_folder_of_images_is_refused_with_what_was_expected(photos: Path) -> None:
    (photos / "empty").mkdir()
    (photos / "empty" / "x.txt").write_bytes(b"II")

    with pytest.raises(AvtError, match=r"The folder nowhere does not exist. Expected a folder with images at any depth, .jpeg"):
        folder(Path("nowhere"))
    with pytest.raises(AvtError, match=r"a.png is a file. Expected a folder .* give `--dataset folder:DIR`"):
        folder(photos / "a.png")
    with pytest.raises(AvtError, match=r"empty has no images \(1 other files: .txt\). Expected images at any depth, .jpeg"):
        folder(photos / "empty")


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
