"""Bad images in what measures: left out, counted and bounded as in pretraining, in one go, and with nothing else changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_own_images import save
from tests.support import Result

Avt = Callable[[str], Result]
ON = "--workers 0 --device cpu"
BACKBONE = f"--backbone nin -o backbone.width=0.05 {ON}"
SMALL = "-o augment.resize=36 -o augment.crop=32"
BAD = ("train/a/004.png", "test/b/003.png")


@pytest.fixture
def photos() -> Path:
    for part, count in (("train", 40), ("test", 16)):
        for number in range(count):
            save(Path("photos", part, "ab"[number % 2], f"{number:03}.png"), number, size=(50 + number, 44))
    return Path("photos")


def spoil(photos: Path) -> Path:
    """Return a copy without an image of each split, which are broken in the folder itself."""
    without = Path(shutil.copytree(photos, "without"))
    for name in BAD:
        (without / name).unlink()
        (photos / name).write_bytes(b"no image")
    return without


@pytest.mark.parametrize("how", ["--head knn", "--epochs 2 --augment", "--epochs 2 --finetune --no-baseline"])
def test_a_probe_of_bad_images_is_that_of_the_others(how: str, photos: Path, avt: Avt) -> None:
    line = f"probe {BACKBONE} {SMALL} {how} --json --dataset folder:"
    without = spoil(photos)
    found, expected = avt(f"{line}{photos}"), avt(f"{line}{without}")

    assert found.code == 0, found.stderr
    (data,) = found.json["protocol"]["data"]
    assert (data["train_images"], data["test_images"]) == (39, 15)
    for part in ("results", "baseline"):
        rows = [[{**row, "dataset": ""} for row in result.json[part]] for result in (found, expected)]
        assert rows[0] == rows[1], part
    assert "1 of the 40 train images cannot be used and is left out:" in found.stderr
    assert "1 of the 16 test images cannot be used and is left out:" in found.stderr
    assert f"{BAD[0]} does not decode: it is no image of a known format." in found.stderr.replace("\n", "")
    assert "left out" not in expected.stderr


def test_evaluation_counts_the_pairs_of_the_others(photos: Path, avt: Avt) -> None:
    line = f"evaluate {BACKBONE} {SMALL} --transform rotation --json --dataset folder:"
    without = spoil(photos)
    found, expected = avt(f"{line}{photos}"), avt(f"{line}{without}")

    assert found.code == 0, found.stderr
    assert (found.json["count"], found.json["protocol"]["ridge"]["fit_pairs"]) == (15, 39)
    assert found.json["ridge"] == expected.json["ridge"]
    assert found.json["baselines"] == expected.json["baselines"]


@pytest.mark.parametrize("more", ["", pytest.param("--processes 2", marks=pytest.mark.slow)])
def test_an_embedding_has_a_row_of_each_other_image_with_its_name(more: str, photos: Path, avt: Avt, avt_process: Avt) -> None:
    without = spoil(photos)
    run = avt_process if more else avt
    found = run(f"embed {BACKBONE} {SMALL} {more} --json --out found.npz --dataset folder:{photos}")
    avt(f"embed {BACKBONE} {SMALL} --out expected.npz --dataset folder:{without}")

    assert found.code == 0, found.stderr
    assert json.loads(found.stdout)["count"] == 54
    assert not more or found.stderr.count("54/54 images") == 1
    with np.load("found.npz") as one, np.load("expected.npz") as other:
        assert one["names"].tolist() == other["names"].tolist()
        assert one["labels"].tolist() == other["labels"].tolist()
        assert one["split"].tolist() == [0] * 39 + [1] * 15
        np.testing.assert_allclose(one["conv2"], other["conv2"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("line", ["probe --head knn", "evaluate --transform rotation", "embed --out e.npz"])
def test_more_than_the_bound_is_an_error_that_names_them_all(line: str, photos: Path, avt: Avt) -> None:
    (photos / "train/a/000.png").write_bytes(b"no image")
    (photos / "train/a/002.png").write_bytes((photos / "train/a/004.png").read_bytes()[:90])
    Image.new("RGB", (9, 9)).save(photos / "train/b/001.png")
    command, _, how = line.partition(" ")
    result = avt(f"{command} {BACKBONE} -o augment.crop=32 {how} --dataset folder:{photos}")

    text = " ".join(result.stderr.split())
    assert result.code == 2
    assert "3 of the 40 train images cannot be used, and at most 1 may be left out (1%)" in text
    for name in ("a/000.png", "a/002.png", "b/001.png"):
        assert text.count(name) == 1, text
    assert "--max-bad-fraction" not in text


def test_as_many_images_of_a_run_are_left_out_as_the_run_itself_may_skip(photos: Path, avt: Avt) -> None:
    for number in (0, 2, 4):
        (photos / f"train/a/00{number}.png").write_bytes(b"no image")
    line = f"pretrain {photos} --backbone nin -o backbone.width=0.05 {SMALL} {ON} --batch-size 8 --max-steps 2 --eval-every 0"
    assert avt(f"{line} --out run --max-bad-fraction 0.1").code == 0
    result = avt(f"embed run {ON} --out e.npz --json")

    assert (result.code, result.json["count"]) == (0, 53), result.stderr
    assert "3 of the 40 train images cannot be used and are left out:" in result.stderr


def test_a_bad_file_that_is_deleted_changes_no_draw_of_the_others(photos: Path, avt: Avt) -> None:
    spoil(photos)
    line = f"pretrain {photos} --backbone nin -o backbone.width=0.05 {SMALL} {ON} --batch-size 8 --max-steps 2 --eval-every 0"
    assert avt(f"{line} --out run --max-bad-fraction 0.1").code == 0
    probe = f"probe run {ON} --head knn --limit-train 25 --no-baseline --json"
    before = avt(probe)
    (photos / BAD[0]).unlink()
    after = avt(probe)

    assert (before.code, after.code) == (0, 0), after.stderr
    assert after.json["results"] == before.json["results"]


def test_a_part_of_bad_images_alone_is_an_error(avt: Avt) -> None:
    for name in ("train/0.png", "train/1.png", "test/0.png"):
        save(Path("few", name), 0)
    Path("few/test/0.png").write_bytes(b"no image")
    result = avt(f"embed {BACKBONE} {SMALL} --split test --out e.npz --dataset folder:few")

    assert (result.code, "1 of the 1 test images cannot be used" in " ".join(result.stderr.split())) == (2, True)


def test_a_report_shows_the_others(photos: Path, avt: Avt) -> None:
    line = f"pretrain {photos} --backbone nin -o backbone.width=0.05 {SMALL} {ON} --batch-size 8 --max-steps 2 --eval-every 0"
    (photos / BAD[1]).write_bytes(b"no image")
    assert avt(f"{line} --out run").code == 0
    result = avt("report run --json")

    assert result.code == 0, result.stderr
    assert "embedding_map" in result.json["sections"]
    assert "15 test images of" in Path("run/report.html").read_text()
    assert "1 of the 16 test images cannot be used and is left out:" in result.stderr
