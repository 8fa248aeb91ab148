"""CIFAR-10: read from its own layout, and never by running what a pickle says."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from avtcli import registry
from avtcli.errors import AvtError
from tests.support import write_cifar10


def build(path: Path):
    return registry.build("dataset", f"cifar10:{path}", {}, data_dir=Path("data"))


@pytest.mark.parametrize("given", ["the folder", "the one above"])
def test_images_and_labels_come_as_the_batches_hold_them(tmp_path: Path, given: str) -> None:
    folder = write_cifar10(tmp_path, per_batch=7)
    data = build(folder if given == "the folder" else tmp_path)
    with (folder / "data_batch_2").open("rb") as file:
        second = pickle.load(file)

    assert (len(data.train), len(data.test), data.channels, data.size) == (35, 7, 3, (32, 32))
    # the published order: 1024 red, then green, then blue, row by row
    expected = second["data"][3].reshape(3, 32, 32)
    np.testing.assert_array_equal(data.train.read(10).numpy(), expected)
    assert data.train.labels.tolist() == list(range(7)) * 5
    assert data.train.name(10) == "train/10"


def test_torchvision_reads_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = write_cifar10(tmp_path)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    theirs = CIFAR10(str(tmp_path), train=True)
    ours = build(tmp_path).train

    assert torch.equal(ours.images, torch.from_numpy(theirs.data).permute(0, 3, 1, 2))
    assert ours.labels.tolist() == theirs.targets


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    folder = write_cifar10(tmp_path)
    content = {"data": np.full((2, 3072), 9, np.uint8), "labels": [1, 2], "note": b"bytes"}
    (folder / "data_batch_1").write_bytes(pickle.dumps(content, protocol=protocol))

    assert build(folder).train.images[:2].unique().tolist() == [9]


class Canary:
    def __reduce__(self):
        return Path.touch, (Path("canary"),)


@pytest.mark.parametrize("content", [Canary(), {"data": Canary(), "labels": []}, {"data": np.array([Canary()]), "labels": [1]}])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, content: object) -> None:
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_3").write_bytes(pickle.dumps(content))

    expected = r"data_batch_3 is no batch of CIFAR-10: UnpicklingError: it asks for pathlib.*not allowed"
    with pytest.raises(AvtError, match=expected):
        build(folder)
    assert not Path("canary").exists()


def test_a_codec_other_than_latin_1_is_refused(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_1").write_bytes(b"c_codecs\nencode\n(Vx\nVrot13\ntR.")

    with pytest.raises(AvtError, match="the encoding 'rot13' is not allowed"):
        build(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "holds 2 images of type uint8 and 1 labels"),
        ({"data": np.zeros((1, 3072), np.float64), "labels": [1]}, "of type float64"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [12]}, "has labels from 12 to 12, expected 0 to 9"),
        ({"data": np.zeros((1, 100), np.uint8), "labels": [1]}, "is no batch of CIFAR-10: RuntimeError"),
        ({"labels": [1]}, "is no batch of CIFAR-10: KeyError: 'data'"),
        ([1, 2], "is no batch of CIFAR-10: TypeError"),
    ],
)
def test_a_batch_that_is_none_is_refused_by_name(tmp_path: Path, content: object, message: str) -> None:
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps(content))

    with pytest.raises(AvtError, match=f"test_batch .*{message}"):
        build(folder)


def test_a_batch_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_cifar10(tmp_path) / "data_batch_4"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(AvtError, match=r"data_batch_4 is no batch of CIFAR-10: .*Copy the file again"):
        build(tmp_path)


def test_half_a_data_set_is_an_error_that_names_what_is_missing(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_2").unlink()
    (folder / "data_batch_5").unlink()

    with pytest.raises(AvtError, match="is incomplete: 2 of 6 files are missing, as data_batch_2"):
        build(tmp_path)


def test_a_missing_data_set_names_the_layout_and_the_embedded_one(tmp_path: Path) -> None:
    expected = r"not in .*nowhere\. Expected: cifar-10-batches-py/data_batch_1 .*--dataset fashion-mini"
    with pytest.raises(AvtError, match=expected):
        build(tmp_path / "nowhere")


def test_without_a_network_the_download_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", refuse)
    with pytest.raises(AvtError, match=r"download failed: no network.*--dataset fashion-mini"):
        registry.build("dataset", "cifar10", {}, data_dir=tmp_path)


def test_the_fingerprint_changes_with_the_images(tmp_path: Path) -> None:
    one, two = (build(write_cifar10(tmp_path / name, seed=seed)) for seed, name in enumerate("ab"))

    assert one.fingerprint != two.fingerprint
    assert one.fingerprint == build(tmp_path / "a").fingerprint
