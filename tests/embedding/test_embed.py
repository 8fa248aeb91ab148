"""Embeddings: the numbers that the encoder gives, in the order of the data set, in files that hold them or are not there."""

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
from torch.nn import functional

from avtcli import load_encoder
from avtcli.config.components import Augment, Plugin
from avtcli.contracts import MemorySplit
from avtcli.embedding import embedding_setup as setup
from avtcli.embedding.embed import EmbedResult
from avtcli.embedding.embed import embed as run_embed
from avtcli.embedding.embedding_setup import Wanted
from avtcli.errors import AvtError
from avtcli.events import Event, Progress
from avtcli.features.evaluation_target import EvaluationTarget, load_target
from avtplugins.datasets.fashion_mnist import fashion_mini
from tests.support import run_tiny

SUFFIXES = ("safetensors", "npz", "parquet")
every_format = pytest.mark.parametrize("suffix", SUFFIXES)


def opened(run: Path | None, **given: Any) -> EvaluationTarget:
    return load_target(run, on_event=lambda event: None, **given)


def embedded(subject: EvaluationTarget, out: str, **wanted: Any) -> EmbedResult:
    return run_embed(subject, Wanted(**wanted), out=Path(out), device="cpu", workers=0, on_event=lambda event: None)


def loaded(result: EmbedResult) -> tuple[torch.Tensor, list[str]]:
    """The first layer and the names, by the lines that the command prints."""
    scope: dict[str, Any] = {}
    exec(result.load_with, scope)
    return torch.from_numpy(np.array(scope["features"])), list(scope["names"])


def arrays(path: str) -> dict[str, Any]:
    """All columns of a file, read whole by the formats' own libraries."""
    if path.endswith("parquet"):
        return {field.replace("label", "labels"): pq.read_table(path)[field] for field in pq.read_schema(path).names}
    if path.endswith("npz"):
        with np.load(path) as archive:
            return dict(archive)
    return safetensors.numpy.load_file(path)


def columns(path: str) -> dict[str, Any]:
    """Labels and split, as lists."""
    said = {name: values for name, values in arrays(path).items() if name in ("labels", "split")}
    found = {name: values.to_pylist() if path.endswith("parquet") else values.tolist() for name, values in said.items()}
    if "split" in found and not path.endswith("parquet"):
        found["split"] = [("train", "test")[number] for number in found["split"]]
    return found


def about(path: str) -> dict[str, Any]:
    if path.endswith("parquet"):
        return json.loads(pq.read_schema(path).metadata[b"avt"])
    if path.endswith("npz"):
        return json.loads(str(arrays(path)["avt"]))
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


# the numbers


@every_format
def test_embeddings_are_the_encoders_averages_by_image_in_the_order_of_the_data_set(tiny_run: Path, suffix: str) -> None:
    result = embedded(opened(tiny_run), f"e.{suffix}", split="train", limit_train=300)
    features, names = loaded(result)
    numbers = [int(name.removeprefix("train/")) for name in names]
    data, encoder = fashion_mini().train, load_encoder(tiny_run)
    with torch.no_grad():
        expected = encoder(encoder.normalise(data.images[numbers])).mean((2, 3))

    assert len(set(numbers)) == 300
    assert numbers == sorted(numbers)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert columns(result.file) == {"labels": data.labels[numbers].tolist()}
    assert result.layers == {"conv2": (300, 10)}
    assert (result.count, result.labels, result.format, result.bytes) == (300, True, suffix, Path(result.file).stat().st_size)


@every_format
def test_photographs_are_resized_cropped_to_their_middle_and_named(photo_run: Path, photos: Path, suffix: str) -> None:
    result = embedded(opened(photo_run), f"e.{suffix}")
    features, names = loaded(result)
    encoder, batch = load_encoder(photo_run), []
    for name in names:
        with Image.open(photos / name) as image:
            scale = 40 / min(image.size)
            image = image.resize([int(side * scale + 1e-9) for side in image.size], Image.Resampling.BILINEAR)
        left, top = (image.width - 31) // 2, (image.height - 31) // 2
        batch.append(torch.from_numpy(np.array(image.crop((left, top, left + 32, top + 32)))).permute(2, 0, 1))
    with torch.no_grad():
        expected = encoder(encoder.normalise(torch.stack(batch))).mean((2, 3))

    assert names == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert columns(result.file) == {"split": ["train"] * 7}
    assert not result.labels


POOLINGS = {
    "whole": ({"pool": "none"}, lambda tap: tap),
    "max 3": ({"pool": "max", "pool_size": 3}, lambda tap: functional.adaptive_max_pool2d(tap, 3)),
    "larger than the map": ({"pool": "avg", "pool_size": 100}, lambda tap: tap),
    "max 1": ({"pool": "max"}, lambda tap: tap.amax((2, 3))),
}


def test_a_layer_with_the_name_of_a_column_is_refused(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "tap_shapes", lambda encoder, layers, size: dict.fromkeys(layers, (3,)))

    with pytest.raises(AvtError, match="The file has a column 'labels' of its own"):
        embedded(opened(tiny_run), "e.npz", layers=("labels",))


@every_format
@pytest.mark.parametrize("pooling", POOLINGS)
def test_layers_keep_their_shape_under_each_pooling_and_a_vector_stays_one(tiny_run: Path, suffix: str, pooling: str) -> None:
    wanted, reduced = POOLINGS[pooling]
    layers = ("conv1", "conv2.log_var", "classifier")
    result = embedded(opened(tiny_run), f"e.{suffix}", layers=layers, split="train", limit_train=30, **wanted)
    features, names = loaded(result)
    encoder = load_encoder(tiny_run)
    images = fashion_mini().train.images[[int(name.removeprefix("train/")) for name in names]]
    with torch.no_grad():
        taps = encoder.features(encoder.normalise(images), layers)
    expected = {name: tap if tap.ndim == 2 else reduced(tap) for name, tap in taps.items()}

    assert result.layers == {name: tuple(tap.shape) for name, tap in expected.items()}
    torch.testing.assert_close(features, expected["conv1"], rtol=1e-5, atol=1e-6)
    for name, tap in expected.items():
        found = arrays(result.file)[name]
        values = np.array(found.to_pylist() if suffix == "parquet" else found, np.float32)
        assert np.abs(values.reshape(tap.shape) - tap.numpy()).max() < 1e-5
    assert about(result.file)["layers"] == {name: list(tap.shape[1:]) for name, tap in expected.items()}


@every_format
def test_all_is_the_training_images_then_the_test_images(tiny_run: Path, suffix: str) -> None:
    result = embedded(opened(tiny_run), f"e.{suffix}", limit_train=20)
    data, (_, names) = fashion_mini(), loaded(result)
    numbers = [int(name.removeprefix("train/")) for name in names[:20]]

    assert result.count == 1020
    assert names[20:] == [f"test/{i}" for i in range(1000)]
    assert columns(result.file)["split"] == ["train"] * 20 + ["test"] * 1000
    assert columns(result.file)["labels"] == data.train.labels[numbers].tolist() + data.test.labels.tolist()


def test_the_test_images_are_those_of_all(tiny_run: Path) -> None:
    alone, _ = loaded(embedded(opened(tiny_run), "a.npz", split="test"))
    both, _ = loaded(embedded(opened(tiny_run), "b.npz", limit_train=20))

    assert torch.equal(alone, both[20:])


@every_format
def test_images_without_labels_beside_others_with_some_have_minus_one(tiny_run: Path, suffix: str) -> None:
    subject = opened(tiny_run)
    images = fashion_mini().train.images[:3]
    data = replace(
        subject.prepared.data,
        train=MemorySplit(images, torch.tensor([4, 5, 6]), prefix="a"),
        test=MemorySplit(images, None, prefix="b"),
    )
    result = embedded(replace(subject, prepared=replace(subject.prepared, data=data)), f"e.{suffix}")

    assert columns(result.file)["labels"] == [4, 5, 6, -1, -1, -1]


@every_format
def test_names_of_any_script_are_kept_and_bytes_that_are_no_text_are_escaped(photo_run: Path, suffix: str) -> None:
    root = Path("odd")
    root.mkdir()
    for name in (b"\xe5\x86\x99\xe7\x9c\x9f.png", b"a b\nc.png", b"bad\xff.png", b"plain.png"):
        Image.new("RGB", (40, 40)).save(os.fsdecode(os.fsencode(root) + b"/" + name))
    result = embedded(opened(photo_run, dataset=Plugin(name="folder:odd")), f"e.{suffix}")

    assert loaded(result)[1] == ["a b\nc.png", "bad\\udcff.png", "plain.png", "写真.png"]


def test_the_same_embeddings_again_are_the_same_bytes_and_as_the_library_writes_them(tiny_run: Path) -> None:
    for name in ("a", "b"):
        embedded(opened(tiny_run), f"{name}.safetensors", layers=("conv1", "classifier"), limit_train=300)
    written = Path("a.safetensors").read_bytes()
    metadata = {"avt": json.dumps(about("a.safetensors"), sort_keys=True)}

    assert written == Path("b.safetensors").read_bytes()
    assert written == safetensors.numpy.save(safetensors.numpy.load_file("a.safetensors"), metadata=metadata)


@every_format
def test_a_file_says_what_its_numbers_are(photo_run: Path, photos: Path, suffix: str) -> None:
    subject = opened(photo_run)
    result = embedded(subject, f"e.{suffix}", pool="max", pool_size=2)
    said = about(result.file)

    assert said["weights"]["path"] == str(photo_run)
    assert (said["weights"]["step"], said["weights"]["backbone"]["name"]) == (1, "nin")
    assert said["dataset"] == {"name": f"folder:{photos}", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert said["fingerprint"] == subject.prepared.data.fingerprint
    assert (said["split"], said["splits"], said["limit_train"], said["classes"]) == ("all", ["train", "test"], None, None)
    assert (said["layers"], said["pool"], said["pool_size"]) == ({"conv2": [10, 2, 2]}, "max", 2)
    assert (said["resize"], said["size"], said["mean"]) == (40, [32, 32], [0.485, 0.456, 0.406])
    assert said["version"]


def test_a_backbone_by_name_says_which_weights_it_had() -> None:
    subject = opened(None, backbone=Plugin(name="nin", width=0.05))
    embedded(subject, "e.npz", split="test")

    assert about("e.npz")["weights"] == {
        **{"path": "nin", "step": None, "made": "random"},
        **{"backbone": {"name": "nin", "width": 0.05}},
    }
    assert about("e.npz")["classes"] == list(subject.prepared.data.classes)


def test_progress_is_told_to_the_last_image(tiny_run: Path) -> None:
    events: list[Event] = []
    run_embed(opened(tiny_run), Wanted(limit_train=300), out=Path("e.npz"), workers=0, on_event=events.append)
    told = [(event.done, event.total) for event in events if isinstance(event, Progress)]

    assert told == [(250, 1300), (300, 1300), (550, 1300), (800, 1300), (1050, 1300), (1300, 1300)]


def test_left_out_the_file_lies_in_the_run_folder(tiny_run: Path, tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "run", max_steps=1)
    result = run_embed(opened(run), Wanted(split="test"), out=None, on_event=lambda event: None)

    assert result.file == str(run / "embeddings.safetensors")
    assert load_encoder(run)(torch.zeros(1, 1, 32, 32)).shape[1] == result.layers["conv2"][1]


# what is refused


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"layers": ("conv9",)}, r"no layer 'conv9'. Did you mean 'conv.'\? Its layers: conv1, conv2, conv2.log_var, conv3"),
        ({"split": "test", "limit_train": 5}, "--limit-train draws training images, and --split test embeds none"),
        ({"limit_train": 2001}, "--limit-train 2001 asks for more images than the 2000 that there are"),
    ],
)
def test_what_does_not_exist_is_refused(tiny_run: Path, wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(AvtError, match=message):
        embedded(opened(tiny_run), "e.npz", **wanted)
    assert list(Path().iterdir()) == []


def test_a_data_set_without_test_images_has_none_to_embed(photo_run: Path) -> None:
    with pytest.raises(AvtError, match="has no test images: give --split train or all"):
        embedded(opened(photo_run), "e.npz", split="test")


def test_an_empty_test_part_is_none(tiny_run: Path) -> None:
    subject = opened(tiny_run)
    images = fashion_mini().train.images
    data = replace(subject.prepared.data, test=MemorySplit(images[:0], None, prefix="b"))
    subject = replace(subject, prepared=replace(subject.prepared, data=data))

    assert embedded(subject, "e.npz", limit_train=20).count == 20
    with pytest.raises(AvtError, match="has no test images"):
        embedded(subject, "t.npz", split="test")


def test_another_ending_is_refused_with_those_that_there_are(tiny_run: Path) -> None:
    with pytest.raises(AvtError, match=r"e.csv says no format .* ending in .safetensors, .npz, .parquet"):
        embedded(opened(tiny_run), "e.csv")


@every_format
def test_a_file_that_exists_is_not_overwritten(tiny_run: Path, suffix: str) -> None:
    Path(f"e.{suffix}").write_text("mine")

    with pytest.raises(AvtError, match=rf"e.{suffix} exists already and is not overwritten"):
        embedded(opened(tiny_run), f"e.{suffix}")
    assert Path(f"e.{suffix}").read_text() == "mine"


def test_parquet_without_pyarrow_says_how_to_have_it(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(AvtError, match=r"needs pyarrow, .*: `pip install 'avtcli\[parquet\]'`, or write .safetensors or .npz"):
        embedded(opened(tiny_run), "e.parquet")


def test_an_exported_file_has_no_folder_for_the_embeddings(tiny_run: Path) -> None:
    subject = opened(tiny_run)

    with pytest.raises(AvtError, match="is no run, whose folder would take the embeddings: say with --out"):
        run_embed(replace(subject, source=replace(subject.source, run=None)), Wanted(), out=None, on_event=lambda event: None)


def test_images_of_another_size_than_the_run_had_are_refused_until_it_is_said_what_becomes_of_them(tiny_run: Path) -> None:
    subject = opened(tiny_run)
    data = replace(subject.prepared.data, size=(40, 48), test=None)
    other = replace(subject, prepared=replace(subject.prepared, data=data, augment=Augment(resize=36), size=(36, 43)))

    with pytest.raises(AvtError, match=r"36x43 px, .* trained on 32x32 px: give `-o augment.resize=32 -o augment.crop=32`"):
        embedded(other, "e.npz")


def test_images_smaller_than_the_crop_are_refused_though_padding_would_have_made_them_fit(tiny_run: Path) -> None:
    with pytest.raises(AvtError, match=r"The images are 32x32 px, too small for augment.crop = 36"):
        embedded(opened(tiny_run, augment=Augment(crop=36, padding=4)), "e.npz")


def test_a_crop_that_is_asked_for_is_taken(tiny_run: Path) -> None:
    result = embedded(opened(tiny_run, augment=Augment(crop=16)), "e.npz", split="test", pool="none")

    assert result.layers == {"conv2": (1000, 10, 4, 4)}


@pytest.mark.parametrize(("name", "side"), [("alexnet", 224), ("timm:test_vit", 160)])
def test_a_size_that_the_backbone_does_not_take_is_told(name: str, side: int) -> None:
    subject = opened(None, backbone=Plugin(name=name), augment=Augment(resize=side, crop=side))
    small = replace(subject, prepared=replace(subject.prepared, augment=Augment(crop=16), size=(16, 16)))

    with pytest.raises(AvtError, match=r"does not take images of 16x16 px\. Give it images of the size that it was trained on"):
        embedded(small, "e.npz")
