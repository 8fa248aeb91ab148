"""A user's own images in every command: a folder is given, and sizes, channels, labels and figures follow from it."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avtcli import registry
from avtcli.config.components import Augment
from avtcli.contracts import ImageData
from avtcli.data.datasets import with_sizes
from avtcli.data.held_out import partition
from avtplugins.datasets.folder import folder
from tests.support import Result

QUICK = "-o backbone.width=0.05 --batch-size 8 --max-steps 2 --workers 0 --device cpu --eval-every 0"


def save(path: Path, number: int, *, size: tuple[int, int] = (50, 44), mode: str = "RGB") -> None:
    """A smooth picture; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).convert(mode).resize(size, Image.Resampling.BICUBIC).save(path)


def save_classes(root: Path, *, count: int = 20, mode: str = "RGB") -> Path:
    for number in range(count):
        save(root / "ab"[number % 2] / f"{number}.png", number, size=(50 + number, 44), mode=mode)
    return root


@pytest.fixture
def photos() -> Path:
    return save_classes(Path("photos"))


def config_of(run: str) -> dict[str, Any]:
    return tomllib.loads(Path(run, "config.toml").read_text())


def test_one_folder_goes_through_every_command(photos: Path, avt: Any) -> None:
    made = avt(f"pretrain photos {QUICK} --out run")
    config = config_of("run")
    held = len(partition(folder(photos)).held_out)

    assert made.code == 0
    assert "labels: 2 class folders" in made.stderr
    assert "sizes: resized to 36 px, cropped to 32 px, for nin" in made.stderr
    assert config["dataset"]["name"] == f"folder:{photos.absolute()}"
    assert config["dataset"]["channels"] == 3
    assert (config["augment"]["resize"], config["augment"]["crop"]) == (36, 32)
    probed = avt("probe run --head knn --no-baseline --workers 0 --device cpu --json").json
    assert probed["results"][0]["train_images"] == 20 - held
    assert 0 <= probed["results"][0]["top1"] <= 100
    assert avt("evaluate run --workers 0 --device cpu --json").json["count"] == held
    embedded = avt("embed run --workers 0 --device cpu --out e.npz")
    assert embedded.code == 0
    with np.load("e.npz") as arrays:
        assert arrays["labels"].tolist() == [0] * 10 + [1] * 10


def test_without_labels_no_probe_is_proposed(avt: Any) -> None:
    for number in range(20):
        save(Path("plain", f"{number}.png"), number)
    result = avt(f"pretrain plain {QUICK} --out run")

    assert "\nnext:\n  avt evaluate run\n" in result.stdout


def test_a_resumed_run_and_one_of_its_config_read_the_images_alike(photos: Path, avt: Any) -> None:
    avt(f"pretrain photos {QUICK} --out run")
    avt(f"pretrain photos {QUICK.replace('steps 2', 'steps 4')} --out whole")
    before = config_of("run")
    assert avt("pretrain --resume run --max-steps 4 --workers 0").code == 0
    assert {**config_of("run"), "max_steps": 2, "workers": 0} == before
    name = "checkpoints/step-0000000004/model.safetensors"
    assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()

    Path("photos").rename("moved")
    assert avt("pretrain moved --resume run --max-steps 5 --workers 0").code == 0


def test_a_network_of_grey_images_is_probed_on_grey_data(avt: Any) -> None:
    save_classes(Path("grey"), mode="L")
    avt(f"pretrain grey {QUICK} --out run")

    assert config_of("run")["dataset"]["channels"] == 1
    line = "probe run --head knn --no-baseline --dataset fashion-mini --limit-train 40 --workers 0 --device cpu --json"
    assert avt(line).json["results"][0]["dataset"] == "fashion-mini"


def test_what_measures_takes_the_size_and_channels_of_the_run(tiny_run: Path, photos: Path, avt: Any) -> None:
    """A run of grey images of 32 px, without resizing; the photographs are larger, and in colour."""
    result = avt(f"embed {tiny_run} --dataset folder:{photos} --pool none --workers 0 --device cpu --out e.npz --json")

    assert result.json["layers"] == {"conv2": [20, 10, 8, 8]}
    assert f"images are resized and cropped to 32 px, the size that {tiny_run} was trained on" in result.stderr
    assert result.stderr.count(f"images are read in grey, as {tiny_run} was trained") == 1
    saved = np.load("e.npz")["conv2"]
    for path in (photos / "a", photos / "b"):
        for file in path.iterdir():
            Image.open(file).convert("L").save(file)
    avt(f"embed {tiny_run} --dataset folder:{photos} --pool none --workers 0 --device cpu --out f.npz --json")
    np.testing.assert_allclose(np.load("f.npz")["conv2"], saved, atol=1e-5)


def test_a_path_in_place_of_a_name_is_answered_by_how_to_write_it(photos: Path, avt: Any) -> None:
    Path("list.csv").write_text("".join(f"{path}\n" for path in sorted(photos.glob("a/*.png"))))

    def said(line: str) -> str:
        return " ".join(avt(line).stderr.split())

    assert "files:" in said("pretrain list.csv").split("A list of images: `--dataset ")[1]
    assert "There is no folder hf:x. A data set by name: `--dataset hf:x`." in said("pretrain hf:x")
    assert "No dataset is called 'photos'. photos is a folder: write `folder:photos`." in said("pretrain --dataset photos")
    assert "list.csv is a file: where it lists images write `files:list.csv`." in said("pretrain --dataset list.csv")
    checked = avt("data check list.csv --workers 0 --json")
    assert (checked.json["dataset"], checked.json["splits"][0]["images"]) == (f"files:{Path.cwd()}/list.csv", 10)


def test_a_probe_with_few_test_images_says_what_one_counts_and_calls_no_layer_the_best(photos: Path, avt: Any) -> None:
    options = "--backbone nin -o backbone.width=0.05 -o augment.resize=32 -o augment.crop=32 --workers 0 --device cpu"
    result = avt(f"probe {options} --dataset folder:{photos} --layer conv1,conv2 --head knn --no-baseline")

    assert (result.code, "2 held-out images: one is 50.0 points" in result.stderr) == (0, True), result.stderr
    assert "top-1 %" in result.stdout
    assert "(best)" not in result.stdout
    assert "top-5 %" not in result.stdout  # of two classes


def test_a_folder_and_a_data_set_together_are_refused(avt: Any) -> None:
    result = avt("pretrain photos --dataset fashion-mini")

    assert (result.code, "Both the folder photos and --dataset were given" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("typical", "natural", "given", "expected"),
    [
        (500, 224, {}, (256, 224)),
        (500, 32, {}, (36, 32)),
        (240, 224, {}, (240, 224)),
        (100, 224, {}, (100, 100)),
        (None, 224, {}, (256, 224)),
        (500, 224, {"resize": 300}, (300, 224)),
        (500, 224, {"resize": 64}, (64, 64)),
        (500, 224, {"crop": 96}, (109, 96)),
        (28, 224, {"crop": 64}, (64, 64)),
        (75, (224, 16), {}, (75, 64)),
        (9, (224, 16), {}, (16, 16)),
        (500, (518, 14), {}, (500, 490)),
        (75, (224, 224), {}, (224, 224)),
        (500, (224, 224), {}, (256, 224)),
    ],
)
def test_sizes_are_those_of_the_backbone_and_enlarge_few(
    typical: int | None, natural: int | tuple[int, int], given: dict[str, int], expected: tuple[int | None, int], photos: Path
) -> None:
    data = folder(photos)
    data = ImageData(data.train, None, 3, None, (0.5,) * 3, (0.5,) * 3, None, "x", typical_side=typical)
    augment = with_sizes(data, Augment(padding=4, **given), natural=registry.InputSize(*np.atleast_1d(natural).tolist()))

    assert (augment.resize, augment.crop, augment.padding) == (*expected, 4)


@pytest.mark.parametrize(
    ("backbone", "side", "step"),
    [
        ("nin", 32, 1),
        ("alexnet", 224, 224),
        ("timm:resnet18", 224, 1),
        ("resnet18", 224, 1),
        ("timm:inception_v3", 299, 1),
        ("vit_small_patch14_dinov2", 518, 14),
    ],
)
def test_a_backbone_states_its_size(backbone: str, side: int, step: int) -> None:
    assert registry.input_size(backbone) == (side, step)


# avt data check


def test_a_check_counts_what_is_there(photos: Path, avt: Any) -> None:
    (photos / "a" / "copy.png").write_bytes((photos / "b" / "1.png").read_bytes())
    Image.open(photos / "a" / "2.png").save(photos / "a" / "again.bmp")
    save(photos / "a" / "grey.jpg", 99, size=(10, 20), mode="L")
    (photos / "b" / "bad.png").write_bytes(b"no image")
    (photos / "notes.txt").write_text("x")
    result = avt("data check photos --workers 0 --json")
    (train,) = result.json["splits"]

    assert result.code == 0
    assert (train["split"], train["images"], train["checked"], train["classes"]) == ("train", 24, 24, 2)
    assert train["class_images"] == [11, 12, 13]
    assert (train["smallest"], train["largest"]) == ([20, 10], [44, 69])
    assert train["modes"] == {"PNG RGB": 21, "BMP RGB": 1, "JPEG L": 1}
    ((name, reason),) = train["bad"]
    assert (name, "does not decode" in reason) == ("b/bad.png", True)
    assert result.json["duplicates"] == 2
    groups = sorted(map(sorted, result.json["duplicate_groups"]))
    assert groups == [["train/a/2.png", "train/a/again.bmp"], ["train/a/copy.png", "train/b/1.png"]]
    assert result.json["left_out"] == {".txt": 1}
    assert (result.json["resize"], result.json["crop"]) == (36, 32)  # as a run on them
    assert result.json["held_out"] == len(partition(folder(photos)).held_out)
    rate, epoch = result.json["images_per_second"], result.json["epoch_seconds"]
    assert epoch == pytest.approx((24 - result.json["held_out"]) / rate, abs=0.1)


def test_a_check_is_the_same_with_reader_processes_and_of_a_sample(photos: Path, avt: Any) -> None:
    for number in range(20, 60):
        save(photos / "b" / f"{number}.png", number)

    def facts(line: str) -> dict[str, Any]:
        result: Result = avt(f"data check folder:photos {line} --json")
        return {key: result.json[key] for key in ("splits", "duplicates", "fingerprint", "mean")}

    assert facts("--workers 2") == facts("--workers 0")
    (train,) = facts("--workers 0 --sample 7")["splits"]
    assert (train["images"], train["checked"], sum(train["modes"].values())) == (60, 7, 7)


def test_a_check_of_a_folder_that_is_not_there_says_so(avt: Any) -> None:
    result = avt("data check ./nosuch")

    assert (result.code, "nosuch does not exist" in " ".join(result.stderr.split())) == (2, True)


def test_a_check_of_bad_images_alone_lists_them(avt: Any) -> None:
    Path("x").mkdir()
    for number in range(3):
        Path(f"x/{number}\n.png").write_bytes(b"no image")
    result = avt("data check x --workers 0")

    assert result.code == 0
    assert "3 images" in result.stdout.split("train bad")[1].split("\n")[0]
    assert [line.count(r"\n.png does not decode") for line in result.stdout.splitlines() if line.startswith("bad ")] == [1] * 3
    verdict = result.stdout.split("verdict")[1].split("\n")[0].strip()
    assert verdict == "100.00% of the train images are bad: pretraining stops, as more than 1% are"
    Path("x/1\n.png").rename("x/1.png")
    save(Path("x/1.png"), 1)
    two = "66.67% of the train images are bad: pretraining stops, as more than 1% are; `--max-bad-fraction 0.67` allows them\n"
    assert two in avt("data check x --workers 0").stdout
    Path("x/2\n.png").rename("x/2.png")
    save(Path("x/2.png"), 2)
    assert "33.33% of the train images are bad: pretraining skips them\n" in avt("data check x --workers 0").stdout


def test_a_check_of_a_known_data_set_knows_its_splits(avt: Any) -> None:
    result = avt("data check fashion-mini --workers 0 --sample 30")

    assert "images/s, not resized, not cropped, by 1 process" in result.stdout
    assert "train          2000 images, 30 checked" in result.stdout
    assert "test           1000 images, 30 checked" in result.stdout
    assert "10, 200 images each" in result.stdout
    assert (avt("data check fashon-mini").code, avt("data check nowhere:x").code) == (2, 2)
