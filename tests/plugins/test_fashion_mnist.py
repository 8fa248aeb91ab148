"""Fashion-MNIST: the embedded part, and all of it where it is installed."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from avtcli import registry
from avtcli.errors import AvtError
from avtplugins.datasets.fashion_mnist import DEBIAN, FILES
from tests.support import write_idx

installed = pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs the Debian package dataset-fashion-mnist")


def build(spec: str, data_dir: Path = Path("data")):
    return registry.build("dataset", spec, {}, data_dir=data_dir)


def test_the_embedded_data_are_balanced_over_ten_classes() -> None:
    data = build("fashion-mini")

    assert data.train.images.shape == (2000, 1, 32, 32)
    assert data.test.images.shape == (1000, 1, 32, 32)
    assert data.train.labels.bincount().tolist() == [200] * 10
    assert data.test.labels.bincount().tolist() == [100] * 10
    assert len(data.classes) == 10


def test_images_are_padded_with_black_to_32_px(tmp_path: Path) -> None:
    data = build(f"fashion-mnist:{write_idx(tmp_path)}")
    expected = np.pad(np.arange(784, dtype=np.uint32).astype(np.uint8).reshape(28, 28), 2)

    np.testing.assert_array_equal(data.train.read(0)[0].numpy(), expected)
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("place", ["FashionMNIST/raw", "fashion-mnist", "."])
def test_it_is_found_where_torchvision_and_people_put_it(tmp_path: Path, place: str) -> None:
    write_idx(tmp_path / place)

    assert len(build("fashion-mnist", tmp_path).train) == 6


@installed
def test_the_embedded_images_are_the_first_of_each_class_of_the_real_ones() -> None:
    real, mini = build(f"fashion-mnist:{DEBIAN}"), build("fashion-mini")

    for whole, part, per_class in ((real.train, mini.train, 200), (real.test, mini.test, 100)):
        firsts = torch.cat([(whole.labels == c).nonzero()[:per_class, 0] for c in range(10)]).sort().values
        assert torch.equal(part.images, whole.images[firsts])
        assert torch.equal(part.labels, whole.labels[firsts])


@installed
def test_the_stated_mean_and_std_are_those_of_the_real_training_images() -> None:
    data = build(f"fashion-mnist:{DEBIAN}")
    pixels = data.train.images.double() / 255

    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.mean == pytest.approx([pixels.mean().item()], abs=5e-5)
    assert data.std == pytest.approx([pixels.std().item()], abs=5e-5)


@pytest.mark.parametrize("file", FILES)
def test_half_a_data_set_is_an_error_that_names_the_missing_file(tmp_path: Path, file: str) -> None:
    (write_idx(tmp_path) / file).unlink()

    with pytest.raises(AvtError, match=f"is incomplete: 1 of 4 files are missing, as {file}"):
        build(f"fashion-mnist:{tmp_path}")


def recompress(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda content: gzip.compress(change(gzip.decompress(content)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "is no complete gzip file"),
        (lambda content: b"<html>not found</html>", "is no complete gzip file"),
        (recompress(lambda plain: b"\0\0\x0d" + plain[3:]), "is no IDX file of bytes with 3 dimensions"),
        (recompress(lambda plain: plain[:-1]), r"holds 4703 bytes, its header states \[6, 28, 28\]"),
        (lambda content: b"", "is no IDX file"),
    ],
    ids=["cut short", "no gzip", "another header", "fewer bytes", "empty"],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = write_idx(tmp_path) / FILES[0]
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(AvtError, match=f"{FILES[0]} {message}"):
        build(f"fashion-mnist:{tmp_path}")


def test_labels_that_do_not_fit_the_images_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path)
    write_idx(tmp_path / "other", train=5)
    (tmp_path / FILES[1]).write_bytes((tmp_path / "other" / FILES[1]).read_bytes())

    with pytest.raises(AvtError, match=r"train images \(6, 28, 28\) and 5 labels"):
        build(f"fashion-mnist:{tmp_path}")


def test_a_missing_data_set_names_the_files_and_the_embedded_one(tmp_path: Path) -> None:
    with pytest.raises(AvtError, match=r"Expected: the four files train-images.*--dataset fashion-mini"):
        build(f"fashion-mnist:{tmp_path / 'nowhere'}")
