"""`avt embed`: what it prints and what it refuses."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from avtcli import load_encoder


def write_photos(folder: Path) -> None:
    for i in range(6):
        (folder / "holiday").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (50 + i, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "holiday" / f"{i}.jpg")


def test_the_json_states_what_was_written_and_how_to_load_it(avt, tiny_run: Path) -> None:
    result = avt(f"embed {tiny_run} --out e.safetensors --limit-train 30 --json")
    found = result.json
    scope: dict[str, Any] = {}
    exec(found["load_with"], scope)

    assert result.code == 0
    assert set(found) == {"file", "format", "step", "count", "layers", "labels", "bytes", "load_with"}
    assert (found["file"], found["format"], found["count"], found["labels"]) == ("e.safetensors", "safetensors", 1030, True)
    assert (found["layers"], found["bytes"]) == ({"conv2": [1030, 10]}, Path("e.safetensors").stat().st_size)
    assert (scope["features"].shape, scope["names"][-1]) == ((1030, 10), "test/999")


def test_the_output_states_shapes_and_the_lines_that_load_them(avt, tiny_run: Path) -> None:
    result = avt(f"embed {tiny_run} --out e.npz --split test --layer conv1,classifier --pool max --pool-size 2")

    assert result.code == 0
    assert "images  1000" in result.stdout
    assert "labels  yes" in result.stdout
    assert "layer   conv1 [1000, 5, 2, 2]\nlayer   classifier [1000, 10]" in result.stdout
    assert "  features, names = arrays['conv1'], arrays['names']" in result.stdout
    assert "pooling  max to 2x2" in result.stderr
    assert "saved e.npz" in result.stderr


def test_pretraining_and_embedding_photographs_in_a_folder(avt) -> None:
    write_photos(Path("photos"))
    cut = "-o augment.resize=40 -o augment.crop=32"
    line = f"pretrain --dataset folder:photos {cut} -o backbone.width=0.05 --batch-size 3 --max-steps 1 --workers 0 --out run"

    assert avt(line).code == 0
    assert avt("embed run --dataset folder:photos --out photos.npz --workers 0 --json").json["count"] == 6
    assert avt("embed run --workers 0").code == 0  # the run's own images and size, into its folder
    assert Path("run/embeddings.safetensors").exists()
    with np.load("photos.npz") as arrays:
        assert arrays["names"].tolist() == [f"holiday/{i}.jpg" for i in range(6)]
        assert "labels" not in arrays


def test_a_backbone_and_a_data_set_take_their_options(avt) -> None:
    write_photos(Path("photos"))
    line = "embed --backbone nin -o backbone.width=0.05 --dataset folder:photos --workers 0 --json"

    natural = avt(f"{line} --out natural.npz --pool none")
    assert natural.json["layers"] == {"conv2": [6, 10, 8, 8]}  # NIN's 32 px, by 4
    cut = avt(f"{line} --out e.npz -o augment.resize=40 -o augment.crop=24 -o dataset.std=[0.5,0.5,0.5] --pool none")
    assert cut.json["layers"] == {"conv2": [6, 10, 6, 6]}


@pytest.mark.usefixtures("exports_load_here")
def test_an_exported_file_is_embedded_where_out_says(avt, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, "run")
    avt("export run --out encoder.safetensors")

    assert avt("embed encoder.safetensors --split test --out a.safetensors").code == 0
    assert avt("embed run --split test --out b.safetensors").code == 0
    refused = avt("embed encoder.safetensors --split test")
    assert "encoder.safetensors is not a run folder, where embeddings are written by default" in refused.stderr
    assert torch.equal(
        load_encoder("encoder.safetensors")(torch.ones(1, 1, 32, 32)), load_encoder("run")(torch.ones(1, 1, 32, 32))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--out e.csv",
            "e.csv has no known embedding format. Expected a file ending in .safetensors, .npz, .parquet",
        ),
        ("--layer conv9", "The backbone has no layer 'conv9'"),
        ("--pool none --pool-size 2", "--pool-size is the side of a pooled map and --pool none does not pool"),
        ("-o schedule.rate=1", "-o takes no kind 'schedule' here. Kinds: backbone, dataset, augment."),
        ("-o backbone.width=1", "`-o backbone.width` needs the name of the backbone: give --backbone too"),
        ("-o dataset.std=1", "`-o dataset.std` needs the name of the dataset: give --dataset too"),
        ("-o augment.flip=true", "`-o augment.flip` has no effect here: images are not padded or flipped"),
        (
            "-o augment.crop=0",
            "These settings (-o augment.KEY) are not right:\n  crop: Input should be greater than 0, found '0'",
        ),
        ("--backbone nin", "Both a run,"),
        ("--dataset folder:nowhere", "/nowhere does not exist"),
    ],
)
def test_what_cannot_be_embedded_is_refused(avt, tiny_run: Path, options: str, message: str) -> None:
    result = avt(f"embed {tiny_run} --out e.npz {options}")

    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert list(Path().iterdir()) == []
