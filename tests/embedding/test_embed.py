"""Embeddings equal the encoder's features, in the order of the data set."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from avtcli import load_encoder
from avtcli.config.components import Augment, Plugin
from avtcli.contracts import MemorySplit
from avtcli.embedding import embed as embed_module
from avtcli.embedding.embed import EmbeddingRequest, EmbedResult
from avtcli.embedding.embed import embed as run_embed
from avtcli.errors import AvtError
from avtcli.events import Event, OnEvent, Progress, ignore
from avtcli.features import cache_storage
from avtcli.features.evaluation_target import EvaluationTarget, load_target
from avtcli.runtime.devices import Context
from avtplugins.datasets.fashion_mnist import fashion_mini
from tests.support import run_tiny

SUFFIXES = ("safetensors", "npz", "parquet")
every_format = pytest.mark.parametrize("suffix", SUFFIXES)


def opened(run: Path | None, **given: Any) -> EvaluationTarget:
    return load_target(run, context=Context.build(device="cpu"), **given)


def with_data(target: EvaluationTarget, **over: Any) -> EvaluationTarget:
    """The target with another part of its data set."""
    return replace(target, prepared=replace(target.prepared, data=replace(target.prepared.data, **over)))


def embedded(target: EvaluationTarget, out: str | None, *, on_event: OnEvent = ignore, **request: Any) -> EmbedResult:
    context = Context.build(device="cpu", workers=0, on_event=on_event)
    return run_embed(target, EmbeddingRequest(**request), out=None if out is None else Path(out), context=context)


def loaded(result: EmbedResult) -> tuple[Tensor, list[str]]:
    """The first layer and the names, by the lines that the command prints."""
    scope: dict[str, Any] = {}
    exec(result.load_with, scope)
    return torch.from_numpy(np.array(scope["features"])), list(scope["names"])


def indices_of(names: list[str]) -> list[int]:
    return [int(name.removeprefix("train/")) for name in names]


def columns(path: str) -> dict[str, Any]:
    """All columns of a file, by the format's library; `split` as text."""
    if path.endswith("parquet"):
        return {name.replace("label", "labels"): pq.read_table(path)[name].to_pylist() for name in pq.read_schema(path).names}
    arrays = dict(np.load(path)) if path.endswith("npz") else safetensors.numpy.load_file(path)
    found = {name: values.tolist() for name, values in arrays.items()}
    return found | ({"split": [("train", "test")[i] for i in found["split"]]} if "split" in found else {})


def about(path: str) -> dict[str, Any]:
    if path.endswith("parquet"):
        return json.loads(pq.read_schema(path).metadata[b"avt"])
    if path.endswith("npz"):
        return json.loads(columns(path)["avt"])
    with safetensors.safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["avt"])


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth images of several sizes, in folders."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(7):
        path = root / ("b" if i % 2 else "a/é") / f"{9 - i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(generator.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        small.resize((44 + 5 * i, 60 - 2 * i), Image.Resampling.BICUBIC).save(path)
    return root


@pytest.fixture(scope="session")
def photo_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on photographs that differ in size."""
    folder = tmp_path_factory.mktemp("runs") / "photos"
    augment = {"resize": 40, "crop": 32, "padding": 4}
    over = {"dataset": {"name": f"folder:{photos}"}, "augment": augment, "max_steps": 1, "batch_size": 4, "workers": 0}
    return run_tiny(folder, limit_train=None, **over)


# features


@every_format
@pytest.mark.parametrize("memory_share", [0.25, 0])
def test_embeddings_equal_the_encoders_features_image_by_image(
    tiny_run: Path, suffix: str, memory_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_storage, "MEMORY_SHARE", memory_share)  # 0 keeps them on disk until they are written
    result = embedded(opened(tiny_run), f"e.{suffix}", split="train", limit_train=300)
    features, names = loaded(result)
    indices, data, encoder = indices_of(names), fashion_mini().train, load_encoder(tiny_run)
    with torch.no_grad():
        expected = torch.cat([encoder(encoder.normalise(data.images[i : i + 1])).mean((2, 3)) for i in indices])

    assert len(set(indices)) == 300
    assert indices == sorted(indices)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert columns(result.file)["labels"] == data.labels[indices].tolist()
    assert "split" not in columns(result.file)
    assert result.layers == {"conv2": (300, 10)}
    assert (result.count, result.labels, result.format, result.bytes) == (300, True, suffix, Path(result.file).stat().st_size)


@every_format
def test_photographs_are_resized_center_cropped_and_named(photo_run: Path, photos: Path, suffix: str) -> None:
    result = embedded(opened(photo_run), f"e.{suffix}")
    features, names = loaded(result)
    encoder, batch = load_encoder(photo_run), []
    for name in names:
        with Image.open(photos / name) as picture:
            image = v2.functional.resize(v2.functional.pil_to_tensor(picture), [40])
        top, left = ((side - 31) // 2 for side in image.shape[1:])
        batch.append(image[:, top : top + 32, left : left + 32])
    with torch.no_grad():
        expected = encoder(encoder.normalise(torch.stack(batch))).mean((2, 3))

    assert names == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert columns(result.file)["split"] == ["train"] * 7
    assert columns(result.file)["labels"] == [0] * 4 + [1] * 3  # the folders a and b


POOLINGS = {
    "none": ({"pool": "none"}, lambda tap: tap),
    "max 3": ({"pool": "max", "pool_size": 3}, lambda tap: functional.adaptive_max_pool2d(tap, 3)),
    "larger than the map": ({"pool": "avg", "pool_size": 100}, lambda tap: tap),
    "max 1": ({"pool": "max"}, lambda tap: tap.amax((2, 3))),
}


@every_format
@pytest.mark.parametrize("pooling", POOLINGS)
def test_layers_are_pooled_and_vectors_are_kept(tiny_run: Path, suffix: str, pooling: str) -> None:
    request, reduced = POOLINGS[pooling]
    layers = ("conv1", "conv2.log_var", "classifier")
    result = embedded(opened(tiny_run), f"e.{suffix}", layers=layers, split="train", limit_train=30, **request)
    features, names = loaded(result)
    encoder = load_encoder(tiny_run)
    with torch.no_grad():
        taps = encoder.features(encoder.normalise(fashion_mini().train.images[indices_of(names)]), layers)
    expected = {name: tap if tap.ndim == 2 else reduced(tap) for name, tap in taps.items()}
    found = columns(result.file)

    assert result.layers == {name: tuple(tap.shape) for name, tap in expected.items()}
    torch.testing.assert_close(features, expected["conv1"], rtol=1e-5, atol=1e-6)
    for name, tap in expected.items():
        assert np.abs(np.reshape(found[name], tap.shape) - tap.numpy()).max() < 1e-5
    assert about(result.file)["layers"] == {name: list(tap.shape[1:]) for name, tap in expected.items()}


@every_format
def test_all_means_the_training_images_then_the_test_images(tiny_run: Path, suffix: str) -> None:
    result = embedded(opened(tiny_run), f"e.{suffix}", limit_train=20)
    data, (features, names) = fashion_mini(), loaded(result)
    test, _ = loaded(embedded(opened(tiny_run), f"t.{suffix}", split="test"))

    assert result.count == 1020
    assert names[20:] == [f"test/{i}" for i in range(1000)]
    assert columns(result.file)["split"] == ["train"] * 20 + ["test"] * 1000
    assert columns(result.file)["labels"] == data.train.labels[indices_of(names[:20])].tolist() + data.test.labels.tolist()
    assert torch.equal(test, features[20:])


@every_format
def test_images_of_a_split_without_labels_have_the_label_minus_one(tiny_run: Path, suffix: str) -> None:
    images = fashion_mini().train.images[:3]
    train, test = MemorySplit(images, torch.tensor([4, 5, 6]), prefix="a"), MemorySplit(images, None, prefix="b")
    result = embedded(with_data(opened(tiny_run), train=train, test=test), f"e.{suffix}")

    assert columns(result.file)["labels"] == [4, 5, 6, -1, -1, -1]


@every_format
def test_names_of_any_script_are_kept_and_other_bytes_escaped(photo_run: Path, suffix: str) -> None:
    root = Path("odd")
    root.mkdir()
    for name in (b"\xe5\x86\x99\xe7\x9c\x9f.png", b"a b\nc.png", b"bad\xff.png", b"plain.png"):
        Image.new("RGB", (40, 40)).save(os.fsdecode(os.fsencode(root) + b"/" + name))
    result = embedded(opened(photo_run, dataset=Plugin(name="folder:odd")), f"e.{suffix}")

    assert loaded(result)[1] == ["a b\nc.png", "bad\\udcff.png", "plain.png", "写真.png"]


def test_the_same_embeddings_are_the_same_bytes(tiny_run: Path) -> None:
    for name in ("a", "b"):
        embedded(opened(tiny_run), f"{name}.safetensors", layers=("conv1", "classifier"), limit_train=300)

    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


@every_format
def test_the_metadata_has_the_weights_the_images_and_the_pooling(photo_run: Path, photos: Path, suffix: str) -> None:
    target = opened(photo_run)
    found = about(embedded(target, f"e.{suffix}", pool="max", pool_size=2).file)

    assert found["weights"]["path"] == str(photo_run)
    assert (found["weights"]["step"], found["weights"]["backbone"]["name"]) == (1, "nin")
    assert found["dataset"]["name"] == f"folder:{photos}"
    assert found["fingerprint"] == target.prepared.data.fingerprint
    assert (found["split"], found["splits"], found["limit_train"]) == ("all", ["train", "test"], None)
    assert found["classes"] == ["a", "b"]
    assert (found["layers"], found["pool"], found["pool_size"]) == ({"conv2": [10, 2, 2]}, "max", 2)
    assert (found["resize"], found["size"], found["mean"]) == (40, [32, 32], list(target.prepared.data.mean))
    assert found["version"]


def test_the_metadata_of_a_backbone_by_name_has_its_weights() -> None:
    target = opened(None, backbone=Plugin(name="nin", width=0.05))
    found = about(embedded(target, "e.npz", split="test").file)

    backbone = {"name": "nin", "width": 0.05}
    assert found["weights"] == {"path": "nin", "step": None, "made": "random", "backbone": backbone}
    assert found["classes"] == list(target.prepared.data.classes)


def test_progress_counts_every_image(tiny_run: Path) -> None:
    events: list[Event] = []
    embedded(opened(tiny_run), "e.npz", limit_train=300, on_event=events.append)
    progress = [(event.done, event.total) for event in events if isinstance(event, Progress)]

    assert progress == [(250, 1300), (300, 1300), (550, 1300), (800, 1300), (1050, 1300), (1300, 1300)]


def test_by_default_the_file_is_in_the_run_folder(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "run", max_steps=1)

    assert embedded(opened(run), None, split="test").file == str(run / "embeddings.safetensors")


# refusals


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"layers": ("conv9",)}, r"no layer 'conv9'. Did you mean 'conv.'\? Its layers: conv1, conv2, conv3"),
        ({"split": "test", "limit_train": 5}, "--limit-train limits training images, and --split test embeds none"),
        ({"limit_train": 2001}, "--limit-train 2001 is more than the 2000 images of the split"),
    ],
)
def test_what_does_not_exist_is_refused(tiny_run: Path, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(AvtError, match=message):
        embedded(opened(tiny_run), "e.npz", **request_)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", ["labels", "name_ends", "file"])
def test_a_layer_with_a_reserved_name_is_refused(tiny_run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_module, "tap_shapes", lambda encoder, layers, size: dict.fromkeys(layers, (3,)))

    with pytest.raises(AvtError, match=f"Embedding files reserve the name '{name}'"):
        embedded(opened(tiny_run), "e.npz", layers=(name,))


def test_a_data_set_without_test_images_has_none_to_embed(tiny_run: Path) -> None:
    target = with_data(opened(tiny_run), test=MemorySplit(fashion_mini().train.images[:0], None, prefix="b"))

    assert embedded(target, "e.npz", limit_train=20).count == 20
    for other in (target, with_data(target, test=None)):
        with pytest.raises(AvtError, match="has no test images: give --split train or all"):
            embedded(other, "t.npz", split="test")


@every_format
def test_a_file_that_exists_is_not_overwritten(tiny_run: Path, suffix: str) -> None:
    Path(f"e.{suffix}").write_text("mine")

    with pytest.raises(AvtError, match=rf"e.{suffix} exists already and is not overwritten"):
        embedded(opened(tiny_run), f"e.{suffix}")
    assert Path(f"e.{suffix}").read_text() == "mine"


def test_parquet_without_pyarrow_is_refused_with_the_command(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(AvtError, match=r"needs pyarrow, .*: `pip install 'avtcli\[parquet\]'`, or write .safetensors or .npz"):
        embedded(opened(tiny_run), "e.parquet")


def test_images_of_another_size_are_refused_without_a_crop(tiny_run: Path) -> None:
    target = with_data(opened(tiny_run), size=(40, 48), test=None)
    other = replace(target, prepared=replace(target.prepared, augment=Augment(resize=36), size=(36, 43)))

    with pytest.raises(AvtError, match=r"36x43 px, .* trained on 32x32 px: give `-o augment.resize=32 -o augment.crop=32`"):
        embedded(other, "e.npz")
    assert embedded(opened(tiny_run, augment=Augment(crop=16)), "e.npz", split="test", pool="none").layers == {
        "conv2": (1000, 10, 4, 4)
    }


@pytest.mark.parametrize(("name", "side"), [("alexnet", 224), ("timm:test_vit", 160)])
def test_a_size_that_the_backbone_does_not_take_is_refused(name: str, side: int) -> None:
    target = opened(None, backbone=Plugin(name=name), augment=Augment(resize=side, crop=side))
    small = replace(target, prepared=replace(target.prepared, augment=Augment(crop=16), size=(16, 16)))

    with pytest.raises(AvtError, match=r"does not take images of 16x16 px"):
        embedded(small, "e.npz")
