"""Every command keeps to the same held-out images: what is opened, what is trained on, and what is measured on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from avtcli.contracts import ImageData
from avtcli.data import streaming
from avtcli.data.training_loader import TrainingLoader
from avtcli.embedding.embed import EmbeddingRequest, build_embedding_setup
from avtcli.evaluation.evaluation_setup import choose_images
from avtcli.events import ignore
from avtcli.features import evaluation_target
from avtcli.features.evaluation_target import load_target
from avtcli.runtime.devices import Context
from avtcli.training import training_setup
from avtcli.training.training_setup import build_training_setup
from avtplugins.datasets._encoded import encoded_data
from avtplugins.datasets._image_files import FileSplit, write_listing
from tests.data.test_held_out import held_out_names
from tests.support import run_probe, run_tiny, tiny_config

CPU = torch.device("cpu")
NAMES = [f"{i:02}.png" for i in range(60)]
HELD_OUT = {name.decode() for name in held_out_names([name.encode() for name in NAMES])}
SETTINGS: dict[str, Any] = {"augment": {"crop": 32}, "limit_train": None, "batch_size": 16, "workers": 0, "device": "cpu"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    save(tmp_path / "photos", NAMES)
    return tmp_path / "photos"


def save(folder: Path, names: list[str] | set[str], *, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = np.random.default_rng([seed, NAMES.index(name)]).integers(0, 256, (34, 34, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


class Opened:
    """Names of the images that were decoded, and of those that were cropped at random: trained on."""

    def __init__(self) -> None:
        self.all: set[str] = set()
        self.trained: set[str] = set()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    found, crop_image = Opened(), streaming.crop_image

    def crop(image: Any, spec: Any, uniforms: list[float] | None, *, name: str) -> Any:
        found.all.add(name)
        found.trained |= {name} if uniforms is not None else set()
        return crop_image(image, spec, uniforms, name=name)

    monkeypatch.setattr(streaming, "crop_image", crop)
    return found


def labelled(photos: Path) -> ImageData:
    """The photographs in two classes, without a test split."""
    listing = write_listing((name.encode(), (photos / name).stat().st_size, i % 2) for i, name in enumerate(NAMES))
    return encoded_data(FileSplit(photos, listing), None, classes=("even", "odd"), mean=(0.5,) * 3, std=(0.5,) * 3)


def run_on(photos: Path, out: Path, **over: Any) -> Path:
    return run_tiny(out, dataset={"name": f"folder:{photos}"}, **{**SETTINGS, **over})


def test_what_is_held_out_is_evaluated_and_never_trained_on(photos: Path, opened: Opened) -> None:
    assert 2 <= len(HELD_OUT) < 10
    run = run_on(photos, Path("run"), max_steps=5, eval_every=1)
    run_on(photos, run, max_steps=12, eval_every=1, resume=True)

    assert opened.trained == set(NAMES) - HELD_OUT
    assert opened.all == set(NAMES)
    assert json.loads((run / "result.json").read_text())["evaluated_on"] == f"{len(HELD_OUT)} held-out images"


@pytest.mark.parametrize("limit", [None, 40])
def test_weights_do_not_depend_on_held_out_images(photos: Path, limit: int | None) -> None:
    """They are damaged or others; one is bad, and the run goes on and resumes."""
    first = run_on(photos, Path("first"), limit_train=limit, eval_every=1)
    save(photos, HELD_OUT, seed=1)
    (photos / min(HELD_OUT)).write_bytes(b"")
    run_on(photos, Path("second"), limit_train=limit, eval_every=1, max_steps=4)
    second = run_on(photos, Path("second"), limit_train=limit, eval_every=1, resume=True)
    paths = [sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors" for run in (first, second)]
    results = [json.loads((run / "result.json").read_text()) for run in (first, second)]

    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert results[0]["mace_px"] != results[1]["mace_px"]
    assert [result["skipped_images"] for result in results] == [0, 1]


def test_the_shares_of_two_processes_have_no_held_out_image(photos: Path, opened: Opened) -> None:
    setup = build_training_setup(tiny_config(dataset={"name": f"folder:{photos}"}, **SETTINGS), on_event=ignore)
    shares = []
    for rank in range(2):
        images, spec = setup.open_images(), setup.build_loader(setup.open_images()).spec
        list(TrainingLoader(images, spec, batch_size=16, device=CPU, rank=rank, world=2).read(0, setup.steps_per_epoch))
        shares.append(opened.trained)
        opened.trained = set()

    assert shares[0].isdisjoint(shares[1])
    assert shares[0] | shares[1] == set(NAMES) - HELD_OUT


@pytest.mark.parametrize("limit", [None, 4])
def test_pretraining_opens_no_test_image(limit: int | None, tmp_path: Path) -> None:
    """None of them decodes, and the first image that does not would end the run."""
    for part, count in (("train", 12), ("val", 6)):
        save(tmp_path / part / "a", NAMES[:count])
    for path in (tmp_path / "val" / "a").iterdir():
        path.write_bytes(b"")
    over = {**SETTINGS, "limit_train": limit, "batch_size": 4, "on_bad_image": "raise", "eval_every": 1}
    run = run_tiny(Path("run"), dataset={"name": f"folder:{tmp_path}"}, **over)

    result = json.loads((run / "result.json").read_text())
    assert result["evaluated_on"] == f"6 {'training' if limit is None else 'held-out'} images"
    assert result["mace_px"] > 0


def test_two_processes_open_no_test_image(avt_process: Any, tmp_path: Path) -> None:
    save(tmp_path / "train" / "a", NAMES[:12])
    save(tmp_path / "val" / "a", NAMES[:6])
    for path in (tmp_path / "val" / "a").iterdir():
        path.write_bytes(b"")
    line = (
        f"pretrain --dataset imagenet:{tmp_path} --recipe default -o backbone.width=0.05 -o augment.crop=32 --batch-size 4 "
        "--max-steps 3 --eval-every 1 --on-bad-image raise --workers 0 --device cpu --processes 2 --out run --json"
    )
    result = avt_process(line)

    assert result.code == 0, result.stderr
    assert result.json["evaluated_on"] == "6 training images"


@pytest.fixture
def run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on labelled photographs without a test split, which every command opens."""
    for module in (training_setup, evaluation_target):
        monkeypatch.setattr(module, "build_data", lambda *args, **named: labelled(photos))
    return run_on(photos, Path("run"), max_steps=3, eval_every=1, seed=3)


def test_the_monitor_classifies_held_out_images_without_a_test_split(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (knn,) = {line["eval"]["knn_top1"] for line in lines if "eval" in line and line["step"] == 1}

    assert knn * len(HELD_OUT) / 100 == pytest.approx(round(knn * len(HELD_OUT) / 100))


def test_evaluate_measures_the_same_images_as_the_run_did(run: Path, avt: Any) -> None:
    result = avt(f"evaluate {run} --seed 3 --workers 0 --device cpu --json").json
    before = json.loads((run / "result.json").read_text())

    assert result["mace_px"] == pytest.approx(before["mace_px"], rel=1e-5)
    assert (result["count"], result["protocol"]["split"]) == (len(HELD_OUT), "held-out")
    assert result["protocol"]["train_images"] == len(NAMES) - len(HELD_OUT)


def test_evaluate_and_probe_measure_held_out_images_and_fit_on_none_of_them(run: Path, photos: Path) -> None:
    target, data = load_target(run, context=Context(CPU)), labelled(photos)
    chosen = choose_images(target.prepared, None)
    result = run_probe(run, head="knn", layers=("conv2",), limit_train=40, baseline=False, workers=0, device="cpu")

    assert {data.train.name(i) for i in chosen.held_out.tolist()} == HELD_OUT
    assert {data.train.name(i) for i in chosen.fit.tolist()} <= set(NAMES) - HELD_OUT
    (found,) = result.protocol["data"]
    assert (found["train_images"], found["test_images"]) == (40, len(HELD_OUT))
    assert result.protocol["reported"] == "held-out split"


def test_a_probe_opens_held_out_images_to_test_only(run: Path, opened: Opened) -> None:
    settings: dict[str, Any] = {"layers": ("conv2",), "baseline": False, "workers": 0, "device": "cpu", "augmented": True}
    run_probe(run, **settings, epochs=2, batch_size=8, schedule={"epochs": 2, "rate": 0.01})

    assert opened.trained == set(NAMES) - HELD_OUT
    assert opened.all == set(NAMES)


def test_embed_takes_all_images_and_a_limit_those_of_a_run(run: Path, photos: Path) -> None:
    target = load_target(run, context=Context(CPU))
    everything, some = (
        build_embedding_setup(target, EmbeddingRequest(limit_train=limit), Context(CPU)).image_names() for limit in (None, 30)
    )
    config = tiny_config(dataset={"name": f"folder:{photos}"}, **{**SETTINGS, "limit_train": 30})
    trained = build_training_setup(config, on_event=ignore).indices

    assert everything == NAMES
    assert some == [NAMES[i] for i in trained.tolist()]
    assert HELD_OUT.isdisjoint(some)


def test_the_seed_does_not_change_what_is_held_out(photos: Path) -> None:
    config = tiny_config(dataset={"name": f"folder:{photos}"}, **SETTINGS)
    one, other = (
        build_training_setup(config.model_copy(update={"seed": seed}), on_event=ignore).parts.held_out.tolist()
        for seed in (0, 1)
    )

    assert one == other == [NAMES.index(name) for name in sorted(HELD_OUT)]
