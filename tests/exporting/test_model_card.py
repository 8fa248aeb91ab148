"""The model card of an export: the hub's header, the run's settings and figures, and what is never overwritten."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from avtcli.exporting.model_card import model_card
from avtcli.models.weights import open_weights
from avtplugins.exporters.safetensors_file import SafetensorsFile
from tests.support import Result

HEAD = {"dataset": "folder:/home/me/photos", "layer": "conv2", "pool": "max", "head": "knn", "train_images": 40, "seed": 3}

pytestmark = pytest.mark.usefixtures("exports_load_here")


@pytest.fixture
def run(tiny_run: Path) -> Path:
    """A run that the test may change."""
    return Path(shutil.copytree(tiny_run, "run"))


def add_probe(run: Path, name: str, *, step: int, top1: float) -> None:
    (run / "probes").mkdir(exist_ok=True)
    heads = {"results": [{**HEAD, "top1": top1}], "baseline": [{**HEAD, "top1": top1 - 10}]}
    (run / "probes" / f"{name}.json").write_text(json.dumps({"step": step, **heads}))


def test_the_header_is_the_hubs_and_the_license_is_left_to_the_user(avt: Callable[..., Result], run: Path) -> None:
    result = avt(f"export {run} --json")
    card = ModelCard.load(result.json["card"])

    assert result.json["card"] == "run/README.md"
    assert (card.data.library_name, card.data.datasets, card.data.license) == ("avtcli", ["fashion-mini"], None)
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.tags == ["avt", "self-supervised-learning"]


def test_the_card_has_settings_figures_and_the_lines_that_load_the_file(avt: Callable[..., Result], run: Path) -> None:
    add_probe(run, "a", step=9, top1=71.234)
    add_probe(run, "earlier", step=6, top1=55.5)
    (run / "evaluate.json").write_text(json.dumps({"step": 9, "mace_px": 12.3456, "r2": 0.5, "nll": None}))
    (run / "probes" / "broken.json").write_text("{")
    avt(f"export {run} --layer conv3")
    text, made = (run / "README.md").read_text(), json.loads((run / "result.json").read_text())

    for row in ("| backbone | nin |", "| data set | fashion-mini, 40 images |", "| objective | avt |", "| epochs | 3 |"):
        assert row in text
    for row in ("| recipe | default |", "| batch size | 16 |", "| step | 9 |", f"| loss | {made['loss']:.4g} | training |"):
        assert row in text
    assert "| mace_px | 12.35 | evaluation |\n| r2 | 0.5 | evaluation |\n" in text
    assert "| folder | conv2 | max | knn | 40 | 3 | 71.23 | 61.23 |" in text
    assert "stopped" not in text
    assert "55.5" not in text
    assert "/home/me" not in text
    assert "(B, 1, 32, 32)" in text
    assert re.search(r"channel with mean\n0\.219 and standard deviation 0\.3318\.", text)
    assert "the features of conv3 (10x8x8)" in text
    assert "is another layer: conv2." in text
    assert "Preprocessing" not in text
    assert "```python\nfrom avtcli import load_encoder\nencoder = load_encoder('encoder.safetensors')\n```" in text


def test_a_readme_that_is_there_is_never_overwritten(avt: Callable[..., Result], run: Path) -> None:
    Path("README.md").write_text("mine")
    first = avt(f"export {run} --out a.safetensors --json")
    again = avt(f"export {run} --out a.safetensors --json")
    Path("a.safetensors").unlink()
    third = avt(f"export {run} --layer conv1 --out a.safetensors --json")

    assert Path("README.md").read_text() == "mine"
    assert first.json["card"] == again.json["card"] == "a.safetensors.README.md"
    assert (third.code, third.json["card"]) == (0, None)
    assert "no model card was written: README.md and a.safetensors.README.md exist already" in third.stderr
    assert "conv2 (10x8x8)" in Path("a.safetensors.README.md").read_text()


def test_a_folder_of_images_is_no_data_set_of_the_hub(tiny_run: Path) -> None:
    source = open_weights(tiny_run)
    own = {"dataset": {"name": "folder:/home/me/photos"}, "recipe": "/home/me/mine.toml", "augment": {"resize": 36, "crop": 32}}
    config = {**source.about["config"], **own}
    moved = replace(source, about={**source.about, "config": config})
    card = ModelCard(model_card(moved, SafetensorsFile(), output="", lines=()).decode())

    assert card.data.datasets is None
    assert "# nin, pretrained on folder without labels" in card.text
    assert "| recipe | mine.toml |" in card.text
    assert "/home/me" not in card.content
    assert "Preprocessing: shorter side resized to 36 px, centre crop 32 px.\n\nInput: images" in card.text


def test_an_exported_file_knows_its_settings_and_no_figures(avt: Callable[..., Result], tiny_run: Path) -> None:
    avt(f"export {tiny_run} --out a.safetensors")
    source = open_weights("a.safetensors")
    text = model_card(source, SafetensorsFile(), output="", lines=()).decode()

    assert "| objective | avt |" in text
    assert "## Pretraining" not in text


def test_the_card_of_a_run_that_stopped_early_says_at_which_step_of_how_many(avt: Callable[..., Result]) -> None:
    avt("pretrain --epochs 3 --max-steps 2 --limit-train 40 --batch-size 16 --eval-every 0 -o backbone.width=0.05 --out run")
    avt("export run")

    assert "| step | stopped at step 2 of 9 |" in Path("run/README.md").read_text()  # 16, 16 and 8 images an epoch
