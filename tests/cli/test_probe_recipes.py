"""The published evaluations by name: their values, and each run for an epoch on small data in the published layout."""

import itertools
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from avtcli import recipes
from avtcli.config.model_spec import ModelSpec
from avtcli.config.resolution import resolve_probe
from avtcli.models.model_building import build_encoder
from avtcli.storage.files import METADATA_KEY
from tests.support import run_tiny, write_cifar10

SGD = {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
SIDES = {"conv1": 12, "conv2": 7, "conv3": 5, "conv4": 6, "conv5": 6}
LINEAR_RATES = [(0, 0.01), (5, 0.002), (25, 4e-4), (45, 8e-5)]


def cifar(head: str) -> dict[str, Any]:
    heads = {"layers": ["conv2"], "head": head, "pool": "none", "pool_sizes": None}
    images = {"dataset": "cifar10", "augment": {"crop": 32, "padding": 4, "flip": True}}
    return {**heads, **images, "epochs": 200, "rates": [(0, 0.1), (100, 0.01), (150, 0.001)], "batch_size": 128}


def linear(dataset: str, pool: str, augment: dict[str, Any]) -> dict[str, Any]:
    heads = {"layers": list(SIDES), "head": "linear", "pool": pool, "pool_sizes": SIDES}
    return {**heads, "dataset": dataset, "augment": augment, "epochs": 65, "rates": LINEAR_RATES, "batch_size": 192}


FROM_256 = {"resize": 256, "crop": 224, "flip": True}
AS_THEY_ARE = {"crop": 224, "flip": True}
PUBLISHED = {
    "cifar10-mlp1": cifar("mlp1"),
    "cifar10-mlp2": cifar("mlp2"),
    "cifar10-mlp3": cifar("mlp3"),
    "cifar10-conv": cifar("conv"),
    "imagenet-nonlinear": {
        **linear("imagenet", "none", FROM_256),
        "layers": ["conv4", "conv5"],
        "head": {"name": "nonlinear", "conv_first": ["conv4"]},
        "pool_sizes": None,
        "epochs": 50,
        "rates": [(0, 0.01), (20, 0.002), (30, 4e-4), (40, 8e-5)],
    },
    "imagenet-linear-max": linear("imagenet", "max", FROM_256),
    "imagenet-linear-avg": linear("imagenet", "avg", FROM_256),
    "places205-linear-max": linear("places205", "max", AS_THEY_ARE),
    "places205-linear-avg": linear("places205", "avg", AS_THEY_ARE),
}
"""The published table, typed."""


def test_every_evaluation_recipe_is_in_the_table() -> None:
    kinds = {name: recipes.parse(name, recipes.text(name))["about"]["kind"] for name in recipes.names()}

    assert {name for name, kind in kinds.items() if kind == "probe"} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_recipes_show_prints_is_the_published_table(avt: Callable[..., Any], name: str) -> None:
    shown, table = tomllib.loads(avt(f"recipes show {name}").stdout), PUBLISHED[name]
    about = shown.pop("about")

    assert about["kind"] == "probe"
    assert "ICCV 2019" in about["source"]
    assert shown == {
        **{name: table[name] for name in ("layers", "head", "pool", "batch_size", "augment")},
        "samples": 5,
        "augmented": True,
        "dataset": {"name": table["dataset"]},
        "optimizer": SGD,
        "schedule": {"epochs": table["epochs"], "pieces": [{"start": n, "rate": rate} for n, rate in table["rates"]]},
        **({} if table["pool_sizes"] is None else {"pool_sizes": table["pool_sizes"]}),
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_as_resolved_chooses_nothing_and_runs_its_own_length(name: str) -> None:
    config, table = resolve_probe({}, recipe=name), PUBLISHED[name]

    assert config.recipe == name
    assert config.schedule is not None
    assert (config.total_epochs, config.augmented, config.limit_train) == (table["epochs"], True, None)
    assert {layer: config.side_of(layer) for layer in SIDES} == (table["pool_sizes"] or dict.fromkeys(SIDES, 4))


def test_the_command_line_goes_before_the_recipe() -> None:
    over = {"layers": ("conv3",), "pool_size": 2, "samples": 0, "dataset": {"name": "places205"}, "augmented": False}
    config = resolve_probe({**over, "optimizer": {"weight_decay": 0.0}}, recipe="imagenet-linear-max")

    assert (config.layers, config.side_of("conv3"), config.samples, config.augmented) == (("conv3",), 2, 0, False)
    assert (config.dataset and config.dataset.name, config.pool) == ("places205", ("max",))
    assert (config.optimizer.name, config.optimizer.weight_decay) == ("sgd", 0.0)


# each for an epoch, through the command line


@pytest.fixture(scope="module")
def cifar_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and the data it was trained on, in CIFAR-10's layout."""
    folder = tmp_path_factory.mktemp("cifar")
    write_cifar10(folder / "data", per_batch=12)
    return run_tiny(folder / "run", dataset={"name": "cifar10"}, data_dir=str(folder / "data"), max_steps=1)


@pytest.mark.parametrize("name", ["cifar10-mlp1", "cifar10-mlp2", "cifar10-mlp3", "cifar10-conv"])
def test_a_cifar_recipe_runs_on_small_data(avt: Callable[..., Any], cifar_run: Path, name: str) -> None:
    result = avt(f"probe {cifar_run} --recipe {name} --epochs 1 --json")

    assert result.code == 0, result.stderr
    protocol = result.json["protocol"]
    for table in (result.json["results"], result.json["baseline"]):
        assert [(head["layer"], head["head"], head["pool"]) for head in table] == [("conv2", PUBLISHED[name]["head"], "none")]
        assert table[0]["val_top1"] is None
    assert (protocol["recipe"], protocol["data"][0]["dataset"]) == (name, "cifar10")
    assert (protocol["data"][0]["train_images"], protocol["data"][0]["test_images"]) == (60, 12)
    assert (protocol["samples"], protocol["epochs"], protocol["batch_size"]) == (5, 1, 128)
    assert protocol["schedule"]["epochs"] == 200
    assert re.search(rf"(?m)^recipe +{name}$", result.stderr)


def test_the_small_labels_experiment_gives_a_row_a_number_of_shots(avt: Callable[..., Any], cifar_run: Path) -> None:
    line = f"probe {cifar_run} --recipe cifar10-conv --shots 1,4 --seeds 2 --epochs 1"
    figures, printed = avt(f"{line} --json").json, avt(line).stdout.splitlines()

    assert [(head["shots"], head["seed"]) for head in figures["results"]] == [(1, 0), (1, 1), (4, 0), (4, 1)]
    assert figures["protocol"]["shots"] == [1, 4]
    header = next(i for i, text in enumerate(printed) if text.startswith("layer"))
    assert printed[header].split()[:4] == ["layer", "pool", "head", "shots"]
    rows = [text.split()[:5] for text in printed[header + 1 : header + 3]]
    assert rows == [["conv2", "not", "pooled", "conv", shots] for shots in "14"]
    mean = sum(head["top1"] for head in figures["results"][:2]) / 2
    assert f"{mean:.2f} ± " in printed[header + 1]


@pytest.mark.parametrize(
    ("line", "messages"),
    [
        ("RUN --recipe cifar10-conv --shots 100", ["--shots 100 asks for 100 training images of each class"]),
        ("RUN --shots 5,many", ["shots.1: Input should be a valid integer, unable to parse string", "found 'many'"]),
        ("RUN --workers many", ["--workers", "many"]),
        (
            "RUN --recipe imagenet-linear-max",
            ["The backbone has no layer 'conv5'.", "Its layers: conv1, conv2, conv3, conv4, classifier."],
        ),
        ("RUN --recipe cifar10-nin", ["The recipe 'cifar10-nin' is for `avt pretrain`, not for `avt probe`."]),
        ("--backbone nin -o backbone.widht=1 --dataset fashion-mini", ["widht", "Did you mean 'width'"]),
    ],
)
def test_what_cannot_be_probed_is_refused(avt: Callable[..., Any], cifar_run: Path, line: str, messages: list[str]) -> None:
    result = avt(f"probe {line}".replace("RUN", str(cifar_run)))

    assert result.code == 2
    assert [message for message in messages if message not in result.stderr] == []


def test_without_augmentation_a_recipe_keeps_its_features_and_its_schedule(avt: Callable[..., Any], cifar_run: Path) -> None:
    protocol = avt(f"probe {cifar_run} --recipe cifar10-mlp1 --no-augment --epochs 2 --no-baseline --json").json["protocol"]

    assert (protocol["augmentation"], protocol["chosen"], protocol["baseline"]) == (None, None, None)


def test_a_recipe_of_ones_own_is_run_from_its_file(avt: Callable[..., Any], cifar_run: Path) -> None:
    Path("mine.toml").write_text('head = "mlp2"\nsamples = 1\n[schedule]\nepochs = 2\nrate = 0.1\n', encoding="utf-8")
    protocol = avt(f"probe {cifar_run} --recipe mine.toml -o optimizer.weight_decay=0 --no-baseline --json").json["protocol"]

    assert (protocol["recipe"], protocol["epochs"], protocol["samples"]) == ("mine.toml", 2, 1)
    assert (protocol["schedule"]["rate"], protocol["schedule"]["warmup"], protocol["schedule"]["pieces"]) == (0.1, 0.05, [])
    assert protocol["optimizer"] == {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.0, "fused": None}


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder as `avt export` writes it, with random weights."""
    colours = {"channels": 3, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    spec = ModelSpec(backbone={"name": "alexnet"}, size=(224, 224), noise_scale=0.001, **colours)
    file = tmp_path_factory.mktemp("alexnet") / "encoder.safetensors"
    about = {"model": spec.model_dump(mode="json", exclude_none=True), "step": 0}
    save_file(build_encoder(spec).state_dict(), file, metadata={METADATA_KEY: json.dumps(about)})
    return file


def write_image(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path)


@pytest.fixture(scope="module")
def published_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet and Places205 in their layouts: 12 training and 4 test images of 2 classes each, of several sizes."""
    folder, sizes, seed = tmp_path_factory.mktemp("data"), itertools.cycle([(70, 50), (40, 64)]), itertools.count()
    for part, count in (("train", 6), ("val", 2)):
        for name, i in itertools.product(("n01", "n02"), range(count)):
            write_image(folder / "imagenet" / part / name / f"{i}.JPEG", next(sizes), next(seed))
    images, lists = "data/vision/torralba/deeplearning/images256", folder / "places205" / "trainvalsplit_places205"
    lists.mkdir(parents=True)
    for part, count in (("train", 6), ("val", 2)):
        names = [(f"a/place{label}/{part}{i}.jpg", label) for label in (0, 204) for i in range(count)]
        for name, _ in names:
            write_image(folder / "places205" / images / name, (256, 256), next(seed))
        text = "".join(f"{name} {label}\n" for name, label in names)
        (lists / f"{part}_places205.csv").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.startswith("places205") else [])
        for name in PUBLISHED
        if not name.startswith("cifar10")
    ],
)
def test_a_recipe_for_large_images_runs_on_small_data(
    avt: Callable[..., Any], alexnet: Path, published_data: Path, name: str
) -> None:
    result = avt(f"probe {alexnet} --recipe {name} --data-dir {published_data} --workers 1 --epochs 1 --no-baseline --json")
    table = PUBLISHED[name]

    assert result.code == 0, result.stderr
    protocol, heads = result.json["protocol"], result.json["results"]
    assert [(head["layer"], head["pool"], head["head"]) for head in heads] == [
        (layer, table["pool"], "nonlinear" if "nonlinear" in name else "linear") for layer in table["layers"]
    ]
    (data,) = protocol["data"]
    assert (data["dataset"], data["train_images"], data["test_images"]) == (table["dataset"], 12, 4)
    assert data["classes"] == {"imagenet": 2, "places205": 205}[table["dataset"]]
    assert protocol["pool_size"] == table["pool_sizes"]
    assert protocol["head"].get("conv_first") == (["conv4"] if name == "imagenet-nonlinear" else None)
    assert (protocol["resize"], protocol["crop"]) == (table["augment"].get("resize"), 224)
