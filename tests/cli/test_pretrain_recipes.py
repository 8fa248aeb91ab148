"""Every published pretraining recipe takes steps on small data in its published layout, through the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import write_cifar10

pytestmark = pytest.mark.usefixtures("few_held_out_images")


def write_imagenet(folder: Path) -> None:
    """Two classes of noise in ImageNet's layout, wider than high."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 1)):
        for name in ("n01440764", "n01443537"):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (280, 340, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{name}_{i}.JPEG")


@pytest.mark.parametrize(
    "recipe",
    [
        *("cifar10-nin", "cifar10-nin-aet", "cifar10-nin-aet-affine", "imagenet-alexnet"),
        pytest.param("imagenet-alexnet-aet", marks=pytest.mark.slow),
    ],
)
def test_a_published_recipe_runs_by_name(avt, recipe: str) -> None:
    write_cifar10(Path("data"), per_batch=4)
    write_imagenet(Path("data/imagenet"))
    result = avt(f"pretrain --recipe {recipe} --max-steps 2 --eval-every 0 --out run --json")

    assert (result.code, result.json["recipe"], result.json["steps"]) == (0, recipe, 2)
    data = "cifar10: 20 images, 3x32x32" if "cifar" in recipe else "imagenet: 6 images, 3x224x224"
    assert data in result.stderr
    assert result.json["mace_px"] > 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in lines if "loss" in line]).tolist() == [True, True]


def test_the_published_recipe_is_taken_for_imagenet_and_alexnet(avt) -> None:
    write_imagenet(Path("elsewhere"))
    result = avt("pretrain --dataset imagenet:elsewhere --backbone alexnet --dry-run --json")

    assert result.json["recipe"] == "imagenet-alexnet"
