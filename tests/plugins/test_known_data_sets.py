"""CIFAR-100, MNIST, STL-10 and SVHN, read from their published layouts and compared with torchvision's readers."""

import importlib
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from avtcli import registry
from avtcli.config.components import Plugin
from avtcli.data.datasets import build_data
from avtcli.errors import AvtError
from avtcli.events import Event, Notice, ignore
from avtcli.training.training_setup import build_training_setup
from tests.support import tiny_config, write_cifar100, write_idx, write_stl10, write_svhn

torch.set_num_threads(1)


def build(spec: str, data_dir: Path = Path("data")):
    return registry.build("dataset", spec, {}, data_dir=data_dir)


def test_cifar100_has_its_fine_labels_and_their_names(tmp_path: Path) -> None:
    data = build("cifar100", write_cifar100(tmp_path).parent)

    assert (len(data.train), len(data.test), data.size) == (20, 20, (32, 32))
    assert data.train.labels.tolist() == list(range(0, 100, 5))
    assert data.train.images.unique(dim=0)[:, 0, 0, 0].tolist() == list(range(20))
    assert data.classes == tuple(f"class {i}" for i in range(100))


@pytest.mark.parametrize("file", ["train", "meta"])
def test_a_pickle_of_cifar100_runs_no_code(file: str, tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self):
            return Path.touch, (Path("canary"),)

    (write_cifar100(tmp_path) / file).write_bytes(pickle.dumps(Canary()))
    with pytest.raises(AvtError, match=rf"{file} is no batch of CIFAR-100: UnpicklingError: it asks for pathlib.*not allowed"):
        build(f"cifar100:{tmp_path}")
    assert not Path("canary").exists()


def test_mnist_has_the_figures_of_its_own_padded_images(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST" / "raw")
    data = build("mnist", tmp_path)

    assert (data.train.images.shape, data.classes) == ((6, 1, 32, 32), tuple("0123456789"))
    # of the published 28x28 images: mean 0.1307, standard deviation 0.3081, as in torch's examples
    mean = 0.1307 * 28**2 / 32**2
    std = ((0.3081**2 + 0.1307**2) * 28**2 / 32**2 - mean**2) ** 0.5
    assert (data.mean[0], data.std[0]) == pytest.approx((mean, std), abs=2e-4)


@pytest.mark.parametrize(
    ("module", "suffix", "mean", "std"),
    [
        ("cifar", "_100", (0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
        ("stl10", "", (0.44671062, 0.43980984, 0.40664645), (0.26034098, 0.25657727, 0.27126738)),
        ("svhn", "", (0.4376821, 0.4437697, 0.47280442), (0.19803012, 0.20101562, 0.19703614)),
    ],
)
def test_the_figures_of_channels_are_those_that_public_code_states_in_full(
    module: str, suffix: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    ours = importlib.import_module(f"avtplugins.datasets.{module}")

    assert getattr(ours, f"MEAN{suffix}") == tuple(round(value, 4) for value in mean)
    assert getattr(ours, f"STD{suffix}") == tuple(round(value, 4) for value in std)


def test_stl10_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    folder = write_stl10(tmp_path)
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda *args: True)
    data = build(f"stl10:{folder}")

    for split, part in ((data.train, "train"), (data.test, "test"), (data.unlabelled, "unlabeled")):
        theirs = STL10(str(tmp_path), split=part)
        assert torch.equal(split.images, torch.from_numpy(theirs.data))
        assert split.labels is None if part == "unlabeled" else split.labels.tolist() == theirs.labels.tolist()


def test_pretraining_takes_what_has_no_labels_and_a_probe_what_has(tmp_path: Path) -> None:
    config = tiny_config(
        dataset={"name": f"stl10:{write_stl10(tmp_path)}"}, limit_train=None, batch_size=4, augment={"resize": 32}
    )
    setup = build_training_setup(config, on_event=ignore)
    expected = np.fromfile(tmp_path / "stl10_binary" / "unlabeled_X.bin", np.uint8).reshape(9, 3, 96, 96)

    assert setup.data.train.labels is None
    np.testing.assert_array_equal(setup.data.train.read(8).numpy(), expected[8].swapaxes(1, 2))
    assert setup.size == (32, 32)


@pytest.mark.parametrize(("file", "content"), [("train_X.bin", b"1" * 1000), ("test_y.bin", b"\0" * 4), ("train_y.bin", b"\1")])
def test_a_damaged_file_of_stl10_is_named(file: str, content: bytes, tmp_path: Path) -> None:
    (write_stl10(tmp_path) / file).write_bytes(content)
    with pytest.raises(AvtError, match=rf"{file} has .*[Cc]opy the file again"):
        build(f"stl10:{tmp_path}")


def test_svhn_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import SVHN

    folder = write_svhn(tmp_path)
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    data = build(f"svhn:{folder}")

    for split, part in ((data.train, "train"), (data.test, "test")):
        theirs = SVHN(str(tmp_path), split=part)
        assert torch.equal(split.images, torch.from_numpy(theirs.data))
        assert split.labels.tolist() == theirs.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]


def test_svhn_without_scipy_or_with_a_damaged_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_svhn(tmp_path)
    (folder / "test_32x32.mat").write_bytes(b"no matrix" * 100)
    with pytest.raises(AvtError, match=r"test_32x32\.mat is no file of SVHN: .*Copy the file again"):
        build(f"svhn:{folder}")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(AvtError, match=r"`pip install 'avtcli\[svhn\]'`"):
        build(f"svhn:{folder}")


def test_the_fingerprint_of_stl10_follows_every_file_and_reads_a_thousand_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_stl10(tmp_path)
    found = {build(f"stl10:{folder}").fingerprint}
    for file in ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin"):
        content = bytearray((folder / file).read_bytes())
        content[0] ^= 3
        (folder / file).write_bytes(content)
        found.add(build(f"stl10:{folder}").fingerprint)
    sizes = list[int]()
    monkeypatch.setattr("avtplugins.datasets.stl10.fingerprint_of", lambda parts: sizes.extend(map(len, parts)) or "x")
    with (folder / "unlabeled_X.bin").open("wb") as sparse:
        sparse.truncate(3 * 96 * 96 * 5000)
    build(f"stl10:{folder}")

    assert len(found) == 6
    assert sizes == [6, 6, 4, 4, 1000]


@pytest.mark.parametrize("name", ["cifar100", "mnist", "stl10", "svhn"])
def test_a_download_is_reported_and_without_a_network_the_message_says_the_layout(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    for function in ("download_url", "download_and_extract_archive"):
        monkeypatch.setattr(f"torchvision.datasets.utils.{function}", refuse)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    expected = rf"'{name}' is not in .* \(download failed: no network\)\. Expected: .*--data-dir DIR.*fashion-mini"
    reported = list[Event]()
    with pytest.raises(AvtError, match=expected):
        build_data(Plugin(name=name), str(tmp_path), on_event=reported.append)
    assert reported == [Notice(f"downloading {name} to {tmp_path / 'svhn' if name == 'svhn' else tmp_path}")]
    assert capfd.readouterr().err == ""
