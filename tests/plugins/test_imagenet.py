import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtplugins.datasets._decoding import decode_image
from avtplugins.datasets.imagenet import imagenet

torch.set_num_threads(1)


def save(path: Path, number: int, *, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: Any) -> None:
    """A real image file of one colour and a stripe; size is (width, height)."""
    image = Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, number * 13 % 256))
    image.paste((250, 10, 10), (0, 0, size[0] // 3, size[1] // 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes in the published layout, made in another order than theirs."""
    for c, name in enumerate(("n03", "n01", "n02")):
        for i in range(2 + c):
            save(tmp_path / "imagenet" / "train" / name / f"{name}_{i}.JPEG", 10 * c + i, size=(40 + i, 30 + c))
        save(tmp_path / "imagenet" / "val" / name / f"ILSVRC2012_val_{c:08d}.JPEG", 50 + c)
    return tmp_path / "imagenet"


def opened(root: Path) -> ImageData:
    return imagenet(root, data_dir=Path("nowhere"))


def test_images_labels_and_order_are_those_of_torchvisions_image_folder(root: Path):
    data = opened(root)
    for part, split in (("train", data.train), ("val", data.test)):
        assert split is not None
        assert split.labels is not None
        reference = ImageFolder(str(root / part))
        assert list(data.classes or ()) == reference.classes == ["n01", "n02", "n03"]
        assert split.labels.dtype == torch.int64
        assert split.labels.tolist() == reference.targets
        assert [str(root / part / split.name(i)) for i in range(len(split))] == [path for path, _ in reference.samples]
        for i in range(len(split)):
            image = split.read(i)
            assert image.dtype == torch.uint8
            assert torch.equal(image, torch.from_numpy(np.array(reference[i][0])).permute(2, 0, 1))
    assert (data.channels, data.size, data.train.images) == (3, None, None)


def test_the_default_folder_is_imagenet_and_options_set_normalisation(root: Path):
    data = imagenet(data_dir=root.parent, std=(0.5, 0.5, 0.5))
    assert len(data.train) == 9
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.std == (0.5, 0.5, 0.5)


def test_hidden_files_and_files_that_are_no_images_are_left_out(root: Path):
    before = opened(root).fingerprint
    (root / "train" / "n01" / "._n01_0.JPEG").write_bytes(b"left by an archiver")
    (root / "train" / "n01" / "readme.txt").write_bytes(b"text")
    (root / "train" / ".cache").mkdir()
    assert opened(root).fingerprint == before


def test_the_fingerprint_follows_names_and_sizes_and_not_the_place(root: Path):
    before = opened(root).fingerprint
    transformed = root.rename(root.parent / "elsewhere")
    assert opened(transformed).fingerprint == before
    file = transformed / "train" / "n01" / "n01_0.JPEG"
    renamed = file.rename(file.with_name("n01_9.JPEG"))
    other = opened(transformed).fingerprint
    renamed.write_bytes(renamed.read_bytes() + b"\0")
    assert len({before, other, opened(transformed).fingerprint}) == 3


# decoding


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".ppm"])
def test_each_allowed_format_decodes_to_its_pixels(suffix: str, tmp_path: Path):
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    save(tmp_path / f"x{suffix}", 5, **options)
    image = decode_image(BytesIO((tmp_path / f"x{suffix}").read_bytes()), name="x")
    assert image[:, 0, 0].tolist() == [250, 10, 10]
    assert image[:, 29, 39].tolist() == [185, 199, 65]
    assert image.shape == (3, 30, 40)


@pytest.mark.parametrize(("mode", "suffix"), [("L", ".jpg"), ("CMYK", ".jpg"), ("P", ".png"), ("RGBA", ".png")])
def test_files_of_other_modes_become_rgb(mode: str, suffix: str, tmp_path: Path):
    save(tmp_path / f"x{suffix}", 3, mode=mode)
    with Image.open(tmp_path / f"x{suffix}") as image:
        assert image.mode == mode
        expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(decode_image(BytesIO((tmp_path / f"x{suffix}").read_bytes()), name="x"), expected)


def test_an_orientation_in_exif_is_not_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    save(tmp_path / "x.jpg", 1, exif=exif)
    assert decode_image(BytesIO((tmp_path / "x.jpg").read_bytes()), name="x").shape == (3, 30, 40)


def damaged_split(root: Path, content: bytes) -> ImageData:
    (root / "train" / "n01" / "n01_0.JPEG").write_bytes(content)
    return opened(root)


def test_a_file_that_is_cut_short_is_named(root: Path):
    content = (root / "train" / "n01" / "n01_0.JPEG").read_bytes()
    data = damaged_split(root, content[:-30])
    with pytest.raises(AvtError, match=r"train/n01/n01_0\.JPEG does not decode: image file is truncated"):
        data.train.read(0)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"8BPS\0\1" + bytes(40)])
def test_a_file_of_another_format_is_named(content: bytes, root: Path):
    data = damaged_split(root, content)
    with pytest.raises(AvtError, match=r"n01_0\.JPEG does not decode: it is no image of a known format\.$"):
        data.train.read(0)


@pytest.mark.parametrize("side", [7100, 10_000, 60_000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(side: int, root: Path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = damaged_split(root, b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(AvtError, match=r"n01_0\.JPEG states more than 50 million pixels .* Remove it"):
        data.train.read(0)


def test_a_file_that_went_away_is_named(root: Path):
    data = opened(root)
    (root / "train" / "n01" / "n01_0.JPEG").unlink()
    with pytest.raises(AvtError, match=r"n01_0\.JPEG was listed and cannot be read now: No such file or directory"):
        data.train.read(0)


# layouts that are not right


def test_a_missing_folder_gives_the_layout_expected(root: Path, tmp_path: Path):
    expected = r"'imagenet' is not in .*nowhere/imagenet \(there is no .*/imagenet/train\).* train/CLASS/\*\.JPEG"
    with pytest.raises(AvtError, match=expected):
        imagenet(data_dir=tmp_path / "nowhere")
    (root / "val").rename(root / "validation")
    with pytest.raises(AvtError, match=r"there is no .*/imagenet/val\)\. Expected: .*val/CLASS/\*\.JPEG"):
        opened(root)


def test_images_that_are_not_sorted_into_class_folders_are_explained(root: Path):
    (root / "val").rename(root / "sorted")
    save(root / "val" / "ILSVRC2012_val_00000001.JPEG", 1)
    expected = r"imagenet/val has no class folders with images alone in it\. Expected .*val/CLASS/"
    with pytest.raises(AvtError, match=expected):
        opened(root)


def test_class_folders_that_differ_are_named(root: Path):
    (root / "val" / "n02").rename(root / "val" / "n77")
    (root / "val" / "n88").mkdir()
    expected = r"differ: 1 of train are not in val \(first n02\), 1 of val are not in train \(first n77\)\. Expected the same"
    with pytest.raises(AvtError, match=expected):
        opened(root)


def test_class_folders_without_images_are_no_classes(root: Path):
    for name in ("n02", "n03"):
        for file in (root / "val" / name).iterdir():
            file.unlink()
    with pytest.raises(
        AvtError, match=r"differ: 2 of train are not in val \(first n02\)\. Expected the same names in train and in val"
    ):
        opened(root)


def test_a_folder_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    scandir = os.scandir

    def refuse(folder: Any):
        if os.fsdecode(folder).endswith("n02"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(AvtError, match=r"The folder .*train/n02 cannot be read: Permission denied\. Check its permissions"):
        opened(root)
