"""A run's data: stored as an absolute path, recognised by every command, and refused where they are others."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avtcli import registry
from avtcli.config.components import Plugin
from avtcli.config.resolution import moved_data, resolve
from avtcli.contracts import ImageData
from avtcli.data.datasets import listings_of
from avtcli.errors import AvtError
from avtcli.storage.run_data import BadImage, append_bad_images, read_listing, write_listings
from avtcli.training.training_setup import build_training_setup
from tests.support import Result, run_tiny, tiny_config

Avt = Callable[[str], Result]


def save_photos(folder: Path, *, seed: int = 0, count: int = 24) -> Path:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 40, 40, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


def run_on(folder: str, out: Path, **over: object) -> Path:
    settings = {"limit_train": None, "augment": {"crop": 32}, "max_steps": 1, **over}
    return run_tiny(out, dataset={"name": f"folder:{folder}"}, **settings)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


@pytest.mark.parametrize("spelling", ["photos", "./photos/", "elsewhere/../photos", "~/photos", "ABSOLUTE"])
def test_every_spelling_of_a_path_is_stored_alike(spelling: str, home: Path) -> None:
    path = spelling.replace("ABSOLUTE", str(home / "photos"))
    config = resolve(
        {"dataset": {"name": f"folder:{path}"}, "data_dir": path, "init_from": path, "homographies": path}, recipe=None
    )

    assert config.dataset.name == f"folder:{home / 'photos'}"
    assert {config.data_dir, config.init_from, config.homographies} == {str(home / "photos")}


def test_a_path_that_goes_up_from_a_link_leads_where_the_system_goes(home: Path) -> None:
    save_photos(home / "far" / "photos")
    (home / "far" / "below").mkdir()
    (home / "link").symlink_to(home / "far" / "below")

    assert registry.resolve("dataset", "folder:link/../photos", {})[0] == f"folder:{home / 'far' / 'photos'}"
    assert registry.resolve("dataset", "folder:link", {})[0] == f"folder:{home / 'link'}"


def test_the_folder_of_data_sets_is_stored_where_one_is_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stored(dataset: str) -> str | None:
        return resolve({"dataset": {"name": dataset}}, recipe=None).data_dir

    assert stored("cifar10") == str(home / "data")
    monkeypatch.setenv("AVT_DATA", "sets")
    assert stored("imagenet") == str(home / "sets")
    assert (stored("fashion-mini"), stored("imagenet:photos")) == (None, None)


def test_an_unknown_home_and_an_empty_path_are_refused() -> None:
    with pytest.raises(AvtError, match=r"~nobody-of-this-name/x starts with the home folder of an unknown user"):
        resolve({"dataset": {"name": "folder:~nobody-of-this-name/x"}}, recipe=None)
    with pytest.raises(AvtError, match=r"it needs something after a colon"):
        resolve({"dataset": {"name": "folder:"}}, recipe=None)


@pytest.mark.parametrize("command", ["embed", "evaluate"])
def test_commands_find_the_runs_images_from_another_folder(command: str, home: Path, avt: Avt) -> None:
    save_photos(home / "photos")
    run = run_on("photos", home / "run")
    save_photos(home / "elsewhere" / "photos", seed=1)
    os.chdir(home / "elsewhere")

    result = avt(f"{command} {run} --json --out {home / 'out'}.{'json' if 'evaluate' in command else 'npz'}")
    assert (result.code, f"folder:{home / 'photos'}" in result.stdout + result.stderr) == (0, True)


@pytest.mark.parametrize("command", ["embed", "evaluate --count 8", "probe"])
def test_commands_refuse_other_images_than_the_runs(command: str, home: Path, avt: Avt) -> None:
    photos = save_photos(home / "photos")
    run = run_on("photos", home / "run")
    (photos / "00.png").unlink()

    result = avt(f"{command} {run}")
    assert (result.code, result.stdout) == (2, "")
    assert f"The images are not those that {run} was trained on: " in result.stderr
    assert "Give --dataset to use other images" in result.stderr


def test_images_that_the_run_could_not_use_may_be_gone(home: Path, avt: Avt) -> None:
    photos = save_photos(home / "photos")
    run = run_on("photos", home / "run")
    write_listings(run, listings_of(registry.build("dataset", f"folder:{photos}", {})))
    append_bad_images(run, [BadImage("train", "00.png", "00.png does not decode")])
    (photos / "00.png").unlink()

    assert avt(f"embed {run} --out a.npz --json").json["count"] == 23
    assert avt(f"embed {run} --dataset folder:photos --out b.npz --json").json["count"] == 23
    (photos / "01.png").unlink()
    result = avt(f"embed {run} --out c.npz")
    assert (result.code, "trained on: 1 missing, first '01.png'" in result.stderr) == (2, True)


def test_a_run_whose_disk_was_away_goes_on_once_it_is_back(home: Path, avt: Avt) -> None:
    photos = save_photos(home / "photos")
    size = "-o backbone.width=0.05 -o augment.crop=32 --batch-size 8 --eval-every 0 --workers 0 --device cpu"
    assert avt(f"pretrain photos {size} --max-steps 1 --out run").code == 0
    photos.rename("away")
    append_bad_images(Path("run"), [BadImage("train", f"0{i}.png", f"0{i}.png cannot be read now") for i in range(4)])
    photos.mkdir()
    for path in Path("away").iterdir():
        (photos / path.name).write_bytes(path.read_bytes() if path.name != "02.png" else b"")

    result = avt("pretrain --resume run --max-steps 3")
    assert result.code == 0, result.stderr
    assert "3 images that could not be used before can be used now" in result.stderr
    for name in ("00.png", "03.png"):
        (photos / name).write_bytes(b"")
    result = avt("pretrain --resume run --max-steps 4")
    assert (result.code, "3 of the 24 train images cannot be used, and at most 1 may" in result.stderr) == (2, True)


def test_a_resumed_setup_has_the_runs_list_of_images(home: Path) -> None:
    photos = save_photos(home / "photos")
    run = run_on("photos", home / "run")
    config = tiny_config(dataset={"name": f"folder:{photos}"}, limit_train=20, augment={"crop": 32})
    before = build_training_setup(config, on_event=lambda event: None)
    write_listings(run, listings_of(before.data))
    append_bad_images(run, [BadImage("train", "05.png", "gone")])
    (photos / "05.png").unlink()
    after = build_training_setup(config, run=run, resume=True, on_event=lambda event: None)

    assert after.indices.tolist() == before.indices.tolist()
    assert after.environment["data_fingerprint"] == before.environment["data_fingerprint"]
    assert after.bad_images.reasons == {5: "gone"}
    (photos / "06.png").unlink()
    with pytest.raises(AvtError, match=r"1 missing, first '06\.png'\. Restore them, or point --dataset or --data-dir to where"):
        build_training_setup(config, run=run, resume=True, on_event=lambda event: None)


def test_a_resumed_run_takes_its_data_set_from_another_place(home: Path) -> None:
    save_photos(home / "photos")
    stored = resolve({"dataset": {"name": "folder:photos", "std": [0.5, 0.5, 0.5]}}, recipe=None).dataset
    moved = moved_data(stored, Plugin(name="folder:elsewhere"))

    assert (moved.name, moved.options["std"]) == (f"folder:{home / 'elsewhere'}", [0.5, 0.5, 0.5])
    with pytest.raises(AvtError, match=r"same images in another place, as `folder:DIR`; found 'imagenet:elsewhere'"):
        moved_data(stored, Plugin(name="imagenet:elsewhere"))
    with pytest.raises(AvtError, match=r"as `folder:DIR`; found 'folder:elsewhere' with std"):
        moved_data(stored, Plugin(name="folder:elsewhere", std=[1, 1, 1]))


def test_the_list_of_a_large_data_set_is_small_and_complete(tmp_path: Path) -> None:
    from avtplugins.datasets._image_files import FileSplit, write_listing

    files = [
        (b"n%08d/n%08d_%d.JPEG" % (i // 1300, i // 1300, i * 7), 90_000 + i * 31 % 60_000, i // 1300) for i in range(200_000)
    ]
    split = FileSplit(tmp_path, write_listing(files))
    data = ImageData(split, None, 3, None, mean=(0.5,) * 3, std=(0.5,) * 3, classes=None, fingerprint="x")
    write_listings(tmp_path, listings_of(data))

    assert (tmp_path / "images-train.gz").stat().st_size < 12 * len(files)
    again = split.with_listing(read_listing(tmp_path, "train") or b"")
    assert (len(again), again.name(123_456)) == (200_000, "n00000094/n00000094_864192.JPEG")
    assert again.labels is not None
    assert again.labels.tolist() == [label for _, _, label in files]
    with pytest.raises(AvtError, match=r"The list of the images in .* is damaged after 1 names"):
        FileSplit(tmp_path, b"a\x001 0\nb\x002\n")
